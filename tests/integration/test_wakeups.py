"""A hint goes out after the commit that made jobs visible, never before, and its loss costs nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import JobRunner
from jobrunner.settings import CHANNEL, parse_dsn
from jobrunner.wakeups import waker_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SILENCE = 0.15  # seconds; hints take a few milliseconds


class Ear:
    """A connection that listens."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(f"LISTEN {CHANNEL}")

    def heard(self, seconds: float = 5.0, most: int = 1) -> list[str]:
        return [notice.payload for notice in self.connection.notifies(timeout=seconds, stop_after=most)]


@pytest.fixture
def ear(dsn) -> Iterator[Ear]:
    ear = Ear(dsn)
    yield ear
    ear.connection.close()


@pytest.fixture
def task(dsn):
    jobs = JobRunner(dsn=dsn)

    @jobs.task
    def send(user_id: int): ...

    yield send
    jobs.close()
    waker_of(parse_dsn(dsn, "test")).close()


@pytest.fixture
def engine(dsn):
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield engine
    engine.dispose()


def test_a_job_of_its_own_transaction_wakes_its_queue(task, ear):
    """One hint with the queue's name, for one job and for a batch."""
    task.enqueue(1)
    assert ear.heard() == ["default"]
    task.options(queue="mail").enqueue(1)
    assert ear.heard() == ["mail"]
    task.options(queue="bulk").enqueue_many([(number,) for number in range(600)])
    assert ear.heard() == ["bulk"]


def test_a_job_for_later_wakes_nobody(task, ear):
    """Scheduled jobs are found by polling when they are due."""
    task.options(delay=60).enqueue(1)
    task.options(delay=60).enqueue_many([(1,)])
    assert ear.heard(SILENCE) == []


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_the_hint_follows_the_commit(task, ear, engine, kind):
    """Before the caller's commit there is silence; the hint comes when the jobs can be seen."""
    with Session(engine) if kind == "session" else engine.connect() as place:
        bound = task.options(**{kind: place})
        bound.enqueue(1)
        bound.options(queue="mail").enqueue_many([(1,), (2,)])
        assert ear.heard(SILENCE) == []
        place.commit()
        assert sorted(ear.heard(most=2)) == ["default", "mail"]
        assert ear.connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (3,)
        bound.enqueue(4)
        place.commit()
        assert ear.heard() == ["default"]


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_no_hint_after_a_rollback(task, ear, engine, kind):
    """What was rolled back wakes nobody, not even with the next commit."""
    with Session(engine) if kind == "session" else engine.connect() as place:
        task.options(**{kind: place}).enqueue(1)
        place.rollback()
        place.execute(sa.text("SELECT 1"))
        place.commit()
    assert ear.heard(SILENCE) == []


def test_a_released_savepoint_is_not_a_commit(task, ear, engine):
    """Only the outermost commit sends hints; a savepoint that was rolled back sends none."""
    with Session(engine) as session:
        with session.begin_nested():
            task.options(session=session).enqueue(1)
        with session.begin_nested() as savepoint:
            task.options(session=session, queue="never").enqueue(1)
            savepoint.rollback()
        assert ear.heard(SILENCE) == []
        session.commit()
    assert ear.heard() == ["default"]
    assert ear.heard(SILENCE) == []


def test_hints_of_one_queue_are_joined(task, ear):
    """A burst of commits is a few hints, at most one each 10 ms."""
    began = time.monotonic()
    for number in range(200):
        task.enqueue(number)
    burst = time.monotonic() - began
    heard = ear.heard() + ear.heard(SILENCE, most=1000)
    assert 1 <= len(heard) <= burst / 0.010 + 2


def test_every_commit_is_followed_by_a_hint(task, ear):
    """However soon after another hint a job is committed, one more comes: joining delays hints, it never drops the last."""
    for number in range(50):
        task.enqueue(number)
        assert ear.heard() == ["default"]


def test_hints_can_be_turned_off(dsn, ear, monkeypatch):
    """`wakeups=False`, or JOBRUNNER_WAKEUPS=0 in the environment, sends nothing."""
    monkeypatch.setenv("JOBRUNNER_WAKEUPS", "0")
    by_environment = JobRunner(dsn=dsn)
    monkeypatch.delenv("JOBRUNNER_WAKEUPS")
    for jobs in (by_environment, JobRunner(dsn=dsn, wakeups=False)):

        @jobs.task
        def send(user_id: int): ...

        send.enqueue(1)
        jobs.close()
    assert ear.heard(SILENCE) == []


def test_a_hint_that_cannot_be_sent_is_no_error(caplog):
    """With the database gone, asking for hints returns at once and only a debug line remains."""
    waker = waker_of(parse_dsn("postgresql://nobody@127.0.0.1:1/nowhere", "test"))
    began = time.monotonic()
    with caplog.at_level(logging.DEBUG, "jobrunner.wakeups"):
        for _ in range(100):
            waker.wake("default")
        assert time.monotonic() - began < 0.5
        wait_until(lambda: "wake-ups cannot be sent" in caplog.text, timeout=10, what="the debug line")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    waker.close()


def test_a_lost_connection_is_opened_again(task, ear, connection):
    """When the server closes the idle side connection, the next hint still arrives."""
    task.enqueue(1)
    assert ear.heard() == ["default"]
    ours = "FROM pg_stat_activity WHERE application_name = 'jobrunner wake-ups' AND datname = current_database()"
    connection.execute(f"SELECT pg_terminate_backend(pid) {ours}")
    wait_until(lambda: connection.execute(f"SELECT count(*) = 0 {ours}").fetchone()[0], timeout=10, what="the server has closed it")
    task.enqueue(2)
    assert ear.heard() == ["default"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 warns of what this test is about
def test_a_forked_child_has_connections_of_its_own(task, ear, connection):
    """After a fork both sides enqueue and send hints; neither disturbs the other's connections."""
    task.enqueue(1)
    assert ear.heard() == ["default"]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task.options(queue="child").enqueue(2)
            waker_of(task._submitter.database.dsn).close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert ear.heard() == ["child"]
    task.options(queue="parent").enqueue(3)
    assert ear.heard() == ["parent"]
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (3,)


@pytest.mark.parametrize(("number", "words"), [(1, "1 job was enqueued"), (3, "3 jobs were enqueued")])
def test_a_session_closed_without_commit_is_warned_about(task, engine, caplog, number, words):
    """The commonest way to lose jobs leaves one line that counts them."""
    with Session(engine) as session:
        for index in range(number):
            task.options(session=session).enqueue(index)
        with session.begin_nested() as savepoint:
            task.options(session=session).enqueue_many([(1,)] * 5)
            savepoint.rollback()
    [record] = [record for record in caplog.records if record.name == "jobrunner.enqueue"]
    assert record.levelno == logging.WARNING
    assert words in record.message
    assert "closed without commit" in record.message


def test_decided_sessions_are_not_warned_about(task, engine, caplog):
    """Commit and explicit rollback are decisions; so is the rollback of `session.begin()` after an error."""
    with Session(engine) as session:
        task.options(session=session).enqueue(1)
        session.commit()
        task.options(session=session).enqueue(2)
        session.rollback()
    with contextlib.suppress(ZeroDivisionError), Session(engine) as session, session.begin():
        task.options(session=session).enqueue(3)
        raise ZeroDivisionError
    assert not [record for record in caplog.records if record.name == "jobrunner.enqueue"]


def test_a_dropped_session_gives_its_connection_back(task, engine):
    """Watching a session does not keep it alive: one that is forgotten without close frees its connection."""
    import gc

    session = Session(engine)
    task.options(session=session).enqueue(1)
    assert engine.pool.checkedout() == 1
    del session
    gc.collect()
    assert engine.pool.checkedout() == 0


def test_one_thread_serves_the_process(task, ear):
    """However many enqueue into a database, there is one background thread for it (other tests' databases have theirs)."""
    before = _wakers()
    threads = [threading.Thread(target=task.enqueue, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ear.heard()
    assert len(_wakers() - before) <= 1
    assert _wakers()


def _wakers():
    return {thread.ident for thread in threading.enumerate() if thread.name == "jobrunner-wakeups" and thread.is_alive()}
