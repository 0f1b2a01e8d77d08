"""With Flask-SQLAlchemy a test, its requests and its jobs each have a session of their own in one transaction, of which nothing is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask, g
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobrunner import ConfigurationError, JobRunner
from jobrunner.settings import parse_dsn
from jobrunner.testing import Jobs, rolled_back

TRACE = ("jobrunner.jobs", "jobrunner.job_history", "jobrunner.job_attempts", "jobrunner.workers", "users")


class Base(DeclarativeBase):
    """Models of these tests."""


class User(Base):
    """A user, who is welcomed by a job."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    welcomed: Mapped[bool] = mapped_column(default=False)


@dataclass
class Site:
    """A Flask app with everything that tests ask for."""

    app: Flask
    db: SQLAlchemy
    jobs: JobRunner
    seen: list[Any]

    def task(self, name: str) -> Any:
        return self.jobs.registry[name]


@pytest.fixture(params=["psycopg", "psycopg2"])
def url(request, fresh_dsn):
    return parse_dsn(fresh_dsn, "test").sqlalchemy_url.replace("+psycopg", f"+{request.param}")


@pytest.fixture(params=["own default session", "no default session"])
def site(request, url, fresh_dsn):
    app = Flask("site")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app, model_class=Base)
    jobs = JobRunner(app, session=db.session if request.param == "own default session" else None)
    made = Site(app, db, jobs, [])
    add_tasks(made)
    add_views(made)
    with app.app_context():
        db.create_all()
    yield made
    with app.app_context():
        db.engine.dispose()
    jobs.close()
    with psycopg.connect(fresh_dsn) as connection:
        left = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TRACE}  # type: ignore[index]
    assert set(left.values()) == {0}, left


def add_tasks(site: Site) -> None:
    db, seen = site.db, site.seen

    @site.jobs.task
    def welcome(user_id: int, commit: bool = True) -> bool:
        seen.append(db.session())
        user = db.session.get_one(User, user_id)
        user.welcomed = True
        if commit:
            db.session.commit()
        return user.welcomed

    @site.jobs.task(max_attempts=1)
    def clash(user_id: int) -> None:
        db.session.add(User(id=user_id + 1))
        db.session.commit()
        db.session.add(User(id=user_id))
        db.session.flush()

    @site.jobs.task(max_attempts=1)
    def roll_back(user_id: int) -> None:
        db.session.get_one(User, user_id).welcomed = True
        db.session.flush()
        db.session.rollback()
        assert not db.session.get_one(User, user_id).welcomed

    @site.jobs.task
    def fresh_context() -> bool:
        first = "mark" not in g
        g.mark = 1
        return first

    @site.jobs.task
    def chain(user_id: int) -> None:
        welcome.options(session=db.session).enqueue(user_id)
        db.session.commit()

    @site.jobs.task
    def forgets(user_id: int) -> None:
        welcome.options(session=db.session).enqueue(user_id)


def add_views(site: Site) -> None:
    db, welcome = site.db, site.task("welcome")

    @site.app.post("/users/<int:number>/<end>")
    def sign_up(number, end):
        db.session.add(User(id=number))
        welcome.options(session=db.session).enqueue(number)
        if end == "commit":
            db.session.commit()
        elif end == "rollback":
            db.session.rollback()
        return "done"


@pytest.fixture
def helper(site):
    with rolled_back(site.app) as connection, Jobs(site.jobs, connection=connection) as helper:
        yield helper


@pytest.fixture
def context(site, helper):
    with site.app.app_context():
        yield


@pytest.mark.parametrize(("end", "found"), [("commit", 1), ("rollback", 0), ("nothing", 0)])
def test_a_request_enqueues_what_it_commits(site, helper, end, found):
    """A view's commit keeps its row and its job, a rollback or a forgotten commit neither."""
    site.app.test_client().post(f"/users/7/{end}")
    assert len(helper.enqueued("welcome", (7,))) == found
    assert helper.drain().counts == ({"succeeded": 1} if found else {})
    with site.app.app_context():
        assert [user.welcomed for user in site.db.session.scalars(sa.select(User))] == [True] * found


def test_a_job_has_a_session_of_its_own(site, helper, context):
    """What a job commits the test sees, in objects it had loaded before too; the session is another, and so is the app context."""
    user = User(id=1)
    site.db.session.add(user)
    site.db.session.commit()
    before = user.welcomed
    site.task("welcome").enqueue(1)
    contexts = [site.task("fresh_context").enqueue() for _ in range(2)]
    helper.drain()
    assert (before, user.welcomed) == (False, True)
    assert site.seen[0] is not site.db.session()
    assert [job.result() for job in contexts] == [True, True]


def test_what_a_job_does_not_commit_is_lost(site, helper, context):
    """A forgotten commit in a task fails the test, as it would fail in production."""
    site.db.session.add(User(id=1))
    site.db.session.commit()
    job = site.task("welcome").enqueue(1, commit=False)
    site.task("forgets").enqueue(1)
    assert helper.drain().counts == {"succeeded": 2}
    assert job.result() is True
    assert not site.db.session.get_one(User, 1).welcomed
    helper.assert_not_enqueued()


def test_a_jobs_rollback_and_errors_are_its_own(site, helper, context):
    """What a failing job had committed stays, the rest goes; the test's work and transaction are untouched."""
    site.db.session.add(User(id=1))
    site.db.session.commit()
    site.db.session.add(User(id=10))
    site.task("roll_back").enqueue(1)
    assert helper.drain().counts == {"succeeded": 1}
    failing = site.task("clash").enqueue(1)
    with pytest.raises(IntegrityError):
        helper.drain()
    assert failing.refresh().state == "failed"
    assert sorted(site.db.session.scalars(sa.select(User.id))) == [1, 2, 10]


def test_jobs_of_jobs_in_their_session(site, helper, context):
    """A job that enqueues in its own session and commits has its child run in the same drain."""
    site.db.session.add(User(id=1))
    site.db.session.commit()
    site.task("chain").enqueue(1)
    assert [attempt.task for attempt in helper.drain().attempts] == ["chain", "welcome"]
    assert site.db.session.get_one(User, 1).welcomed


def test_immediate_in_a_request(site, helper):
    """Immediate mode runs the job inside of the request, in the session state that a worker would not have seen yet."""
    with helper.immediate():
        site.app.test_client().post("/users/7/commit")
    with site.app.app_context():
        assert site.db.session.get_one(User, 7).welcomed


def test_a_session_that_is_bound_to_the_engine(site):
    """Without `rolled_back`: given `db.session`, jobs join its transaction too, and a rollback of the session leaves nothing."""
    db = site.db
    with site.app.app_context(), Jobs(site.jobs, session=db.session) as helper:
        db.session.add(User(id=1))
        site.task("welcome").enqueue(1)
        site.task("clash").enqueue(1)
        assert helper.drain(raise_errors=False).counts == {"succeeded": 1, "failed": 1}
        assert db.session.get_one(User, 1).welcomed
        assert sorted(db.session.scalars(sa.select(User.id))) == [1, 2]
        assert all(isinstance(engine, sa.Engine) for engine in db.engines.values())
        db.session.rollback()
        assert helper.enqueued() == []


def test_a_job_on_another_connection_is_refused(site):
    """A request that would write outside of the test's transaction is an error that says what to do, not a job that is missing."""

    @site.app.errorhandler(ConfigurationError)
    def told(error):
        return f"{error} ({error.hint})"

    with site.app.app_context():
        engine = site.db.engine
    with rolled_back(engine) as connection, Jobs(site.jobs, connection=connection):
        answer = site.app.test_client().post("/users/7/rollback")
    assert "in a transaction that testing.Jobs does not see" in answer.text
    assert "testing.rolled_back(app)" in answer.text


def test_rolled_back_gives_the_engines_back(site):
    """After the block, also after an error, sessions are on the engine again and outside of any transaction of a test."""
    with site.app.app_context():
        engines = dict(site.db.engines)
        site.db.session.execute(sa.text("SELECT 1"))
        with pytest.raises(ZeroDivisionError), rolled_back(site.app):
            raise ZeroDivisionError
        assert site.db.engines == engines
        assert site.db.session.connection().engine is site.db.engine
        site.db.session.remove()


def test_rolled_back_moves_the_sessions(site):
    """Inside, the sessions of the app are on its connection, also in an app context that was active before; a second one is refused."""
    with site.app.app_context():
        site.db.session.execute(sa.text("SELECT 1"))
        with rolled_back(site.app) as connection:
            assert site.db.session.connection() is connection
            assert "postgresql" in repr(site.db)
            with pytest.raises(ConfigurationError, match="in a test's transaction already"), rolled_back(site.app):
                pass


def test_rolled_back_tells_when_it_could_not(site):
    """A connection whose transaction was ended inside is an error: what came after would have stayed."""
    with site.app.app_context(), pytest.raises(ConfigurationError, match="ended inside"), rolled_back(site.app) as connection:
        connection.rollback()


def test_rolled_back_of_an_engine(site, fresh_dsn):
    """An Engine will do: sessions that are bound to the connection are undone."""
    with site.app.app_context():
        engine = site.db.engine
    with rolled_back(engine) as connection, sa.orm.Session(connection) as session:
        session.add(User(id=1))
        session.commit()
        session.rollback()
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 1


def test_rolled_back_refuses_other_things(site):
    """What is neither an app with Flask-SQLAlchemy nor an Engine is named."""
    for other in ("postgresql://", Flask("bare"), site.db):
        with (
            pytest.raises(ConfigurationError, match=r"expected a Flask app with Flask-SQLAlchemy, or a SQLAlchemy Engine"),
            rolled_back(other),
        ):
            pass


def test_a_transactional_job_has_the_apps_session(site, helper, context):
    """A transactional task works in `db.session` when that is the JobRunner's default; its writes and its end are one."""

    @site.jobs.task(transactional=True, max_attempts=1)
    def settle(user_id: int, *, session) -> None:
        session.add(User(id=user_id))
        session.flush()
        site.task("fresh_context").enqueue()
        assert user_id < 2, "too many"

    settle.enqueue(1)
    settle.enqueue(2)
    site.db.session.commit()
    assert helper.drain(raise_errors=False).counts == {"succeeded": 2, "failed": 1}
    assert list(site.db.session.scalars(sa.select(User.id))) == [1]
