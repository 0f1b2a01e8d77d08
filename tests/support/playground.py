"""Owns a small JobRunner for tests of `jobrunner.testing`, and the places where its jobs may be: the app's database or a test's transaction."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta  # noqa: TC003  annotations of tasks are read when they run
from typing import TYPE_CHECKING, Any
from uuid import UUID  # noqa: TC003

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import Cancel, Fail, JobRunner, Retry, Snooze, current_job
from jobrunner.settings import parse_dsn
from jobrunner.testing import Jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ("committed", "session", "connection", "psycopg2")


@dataclass
class Shop:
    """A JobRunner with tasks that note what they did in `seen`."""

    jobs: JobRunner
    seen: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.jobs.registry[name]
        except Exception as error:
            raise AttributeError(name) from error


def shop(dsn: str | None) -> Shop:  # noqa: C901  a list of tasks
    """The JobRunner; without a DSN it has no database of its own."""
    made = Shop(JobRunner(dsn=dsn, wakeups=True))
    seen = made.seen
    task = made.jobs.task

    @task
    def add(a: int, b: int = 2) -> int:
        seen.append((a, b))
        return a + b

    @task(queue="mail", priority=5, tags=["letters"])
    def send(user_id: int, text: str = "", *, loud: bool = False) -> str:
        seen.append(user_id)
        return text.upper() if loud else text

    @task(max_attempts=3, backoff="constant", backoff_base=30, backoff_jitter=0)
    def flaky(times: int) -> str:
        seen.append(current_job().attempt)
        if current_job().attempt <= times:
            raise ValueError(f"attempt {current_job().attempt}")
        return "at last"

    @task
    def steer(how: str) -> None:
        seen.append(how)
        raise {
            "snooze": Snooze(3600), "cancel": Cancel("gone"), "fail": Fail("never"), "retry": Retry("busy", delay=60),
        }[how]  # fmt: skip

    @task
    def parent(children: int) -> None:
        seen.append("parent")
        add.enqueue_many([(number, 0) for number in range(children)])

    @task
    async def asynchronous(number: int) -> int:
        seen.append(current_job().id)
        return number * 2

    @task
    def typed(when: datetime, key: UUID, wait: timedelta) -> datetime:
        seen.append((when, key, wait))
        return when + wait

    @task(transactional=True, max_attempts=1)
    def settle(number: int, *, session: Session) -> int:
        add.enqueue(number)
        session.execute(sa.text("INSERT INTO jobrunner.jobs (task) VALUES (:name)"), {"name": f"settled {number}"})
        if number < 0:
            raise ValueError("negative")
        return number

    @task(max_attempts=3)
    def paged(pages: int) -> list[int]:
        job = current_job()
        page = (job.last_checkpoint or 0) + 1
        seen.append(page)
        job.progress(page / pages, f"page {page}")
        job.checkpoint(page)
        if page < pages:
            raise Retry(delay=0)
        return [page, job.attempt]

    @task(unique=True)
    def once(number: int) -> None:
        seen.append(number)

    return made


@contextmanager
def place(where: str, jobs: JobRunner, dsn: str) -> Iterator[Jobs]:
    """The helper in use, in one of `PLACES`."""
    if where == "committed":
        with Jobs(jobs) as helper:
            yield helper
        return
    url = parse_dsn(dsn, "test").sqlalchemy_url.replace("+psycopg", "+psycopg2" if where == "psycopg2" else "+psycopg")
    engine = sa.create_engine(url)
    try:
        if where == "session":
            with Session(engine) as session, Jobs(jobs, session=session) as helper:
                yield helper
        else:
            with engine.connect() as connection, connection.begin() as transaction:
                with Jobs(jobs, connection=connection) as helper:
                    yield helper
                transaction.rollback()
    finally:
        engine.dispose()


def read(helper: Jobs, query: str, *parameters: object) -> list[Any]:
    """Rows, as they are seen where the helper's jobs are."""
    with helper._in_use()[0].database.store() as store:  # the only way in for every place
        return store.connection.execute(query, parameters or None).fetchall()
