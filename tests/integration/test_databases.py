"""An application whose queues live in several databases: where jobs go, what a handle finds, what is refused."""

from __future__ import annotations

import json

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from jobrunner import JobRunner
from jobrunner.current import JobContext, running
from jobrunner.errors import ConfigurationError, EnqueueError, JobNotFound, LeaseLost
from jobrunner.settings import parse_dsn


def queues_in(dsn):
    """The queues of the jobs in a database, in the order of their ids."""
    with psycopg.connect(dsn) as connection:
        return [queue for (queue,) in connection.execute("SELECT queue FROM jobrunner.jobs ORDER BY id").fetchall()]


@pytest.fixture
def mail_dsn(fresh_dsn):
    """The second database."""
    return fresh_dsn


@pytest.fixture
def several(dsn, mail_dsn, monkeypatch):
    """Two databases in the environment."""
    monkeypatch.setenv("JOBRUNNER_DSN", dsn)
    monkeypatch.setenv("JOBRUNNER_DATABASES", json.dumps({"mail": mail_dsn}))
    monkeypatch.setenv("JOBRUNNER_ROUTES", json.dumps({"mail": "mail", "letters": "mail"}))


@pytest.fixture
def jobs(several):
    """An application on both."""
    runner = JobRunner(wakeups=False)
    yield runner
    runner.close()


@pytest.fixture
def send(jobs):
    """A task whose queue lives in the second database."""

    @jobs.task(queue="mail")
    def send(number: int = 0) -> int:
        return number

    return send


@pytest.fixture
def add(jobs):
    """A task of the default queue."""

    @jobs.task
    def add(number: int = 0) -> int:
        return number

    return add


@pytest.fixture
def engines(dsn, mail_dsn):
    """The application's own engines, under other addresses than those that are configured."""
    made = [sa.create_engine(parse_dsn(each, "test").sqlalchemy_url + "&application_name=app") for each in (dsn, mail_dsn)]
    yield made
    for engine in made:
        engine.dispose()


def test_each_job_goes_where_its_queue_lives(dsn, mail_dsn, send, add):
    """One at a time, in bulk and with another queue for one enqueue: the queue decides."""
    add.enqueue()
    send.enqueue()
    add.options(queue="letters").enqueue()
    send.options(queue="other").enqueue()
    send.enqueue_many([(1,), (2,)])
    add.enqueue_many(range(600))  # by COPY
    send.options(unique="once").enqueue()
    assert not send.options(unique="once").enqueue().created
    assert queues_in(mail_dsn) == ["mail", "letters", "mail", "mail", "mail"]
    assert queues_in(dsn) == ["default", "other"] + ["default"] * 600


def test_a_handle_knows_its_database(jobs, send, add, mail_dsn):
    """State, cancel and retry of a handle are those of the job in its database, though another job elsewhere has the same id."""
    job = send.enqueue(1)
    with jobs.database.store() as store:
        store.connection.execute("INSERT INTO jobrunner.jobs (id, task) OVERRIDING SYSTEM VALUE VALUES (%s, 'add')", (job.id,))
    twin = jobs.job(job.id)
    assert (job.database_name, twin.database_name) == ("mail", "default")
    assert job != twin
    assert job == jobs.job(job.id, database="mail")
    assert job.cancel() == "cancelled"
    assert (job.refresh().state, twin.refresh().state) == ("cancelled", "queued")
    assert job.wait(timeout=10) == "cancelled"
    job.retry()
    assert job.refresh().state == "queued"
    assert queues_in(mail_dsn) == ["mail"]
    with pytest.raises(JobNotFound):
        jobs.job(send.enqueue().id + 1000, database="mail")
    with pytest.raises(ConfigurationError, match="there is no database 'male'"):
        jobs.job(1, database="male")


@pytest.mark.parametrize("by", ["session", "connection", "default"])
def test_a_transaction_elsewhere_is_refused(jobs, send, add, engines, dsn, mail_dsn, by):
    """A job is not written into a transaction of a database in which its queue does not live; one that is right takes it."""
    here, there = engines
    for wrong, right, task in ((here, there, send), (there, here, add)):
        for engine, refused in ((wrong, True), (right, False), (wrong, True)):
            with Session(engine) as session:
                jobs.session = session if by == "default" else None
                bound = task.options(**{by: session if by == "session" else session.connection()}) if by != "default" else task.options()
                if refused:
                    with pytest.raises(EnqueueError, match="no worker would find the job there") as caught:
                        bound.enqueue()
                    with pytest.raises(EnqueueError, match="no worker would find the job there"):
                        bound.enqueue_many([1, 2])
                    assert "options(session=None)" in caught.value.hint
                else:
                    bound.enqueue()
                session.commit()
    assert (queues_in(mail_dsn), queues_in(dsn)) == (["mail"], ["default"])


def test_a_session_elsewhere_is_left_out_on_purpose(jobs, send, engines, mail_dsn):
    """With `session=None` the job of another database is written there at once, whatever becomes of the caller's transaction."""
    with Session(engines[0]) as session:
        jobs.session = session
        send.options(session=None).enqueue()
        session.rollback()
    assert queues_in(mail_dsn) == ["mail"]


def test_an_address_given_explicitly_is_for_all_queues(jobs, send, dsn, mail_dsn):
    """`--dsn` means that database for everything, before and after connections are closed."""
    jobs.use_dsn(dsn)
    send.enqueue()
    jobs.close()
    send.enqueue()
    assert (queues_in(dsn), queues_in(mail_dsn)) == (["mail", "mail"], [])


def test_without_a_default_database_nothing_is_started(mail_dsn, monkeypatch, tmp_path):
    """A queue without a route and no default database is an error that says what to set; no embedded PostgreSQL comes up."""
    monkeypatch.chdir(tmp_path)
    app = Flask("shop")
    app.config.update(JOBRUNNER_DATABASES={"mail": mail_dsn}, JOBRUNNER_ROUTES={"mail": "mail"})
    runner = JobRunner(app, wakeups=False)

    @runner.task(queue="mail")
    def send() -> None:
        """Routed."""

    send.enqueue()
    with pytest.raises(ConfigurationError, match="queue 'other' has no route") as caught:
        send.options(queue="other").enqueue()
    assert "JOBRUNNER_DSN" in caught.value.hint
    with pytest.raises(ConfigurationError, match="there is no default database"):
        _ = runner.database
    assert queues_in(mail_dsn) == ["mail"]
    assert not list(tmp_path.iterdir())
    runner.close()


def test_a_default_database_with_a_second_name_is_refused(dsn, monkeypatch):
    """The same address as default and under a name is refused at the first enqueue."""
    monkeypatch.setenv("JOBRUNNER_DSN", dsn)
    monkeypatch.setenv("JOBRUNNER_DATABASES", json.dumps({"mail": dsn}))
    runner = JobRunner(wakeups=False)

    @runner.task
    def add() -> None:
        """Anything."""

    with pytest.raises(ConfigurationError, match="'default' and 'mail' are the same one"):
        add.enqueue()
    assert queues_in(dsn) == []


def test_a_superseded_attempt_enqueues_nowhere(jobs, send, add, dsn, mail_dsn):
    """An attempt that is no longer the job's is refused a child in the other database too; one that is has no parent there."""
    parent = add.enqueue()
    with psycopg.connect(dsn, autocommit=True) as connection:
        [(worker,)] = connection.execute(
            "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)"
            " VALUES ('w', 'h', 1, 'test', 'v', '{default}', '{add}', 1, now() + interval '1 minute') RETURNING id"
        ).fetchall()
        started = "UPDATE jobrunner.jobs SET state = 'running', worker_id = %s, lease = 7, claimed_at = now(), attempt = 1 WHERE id = %s"
        connection.execute(started, (worker, parent.id))
    context = JobContext(id=parent.id, task="add", queue="default", attempt=1, max_attempts=5, lease=7)
    with running(context):
        send.enqueue()
        send.enqueue_many([1])
    context = JobContext(id=parent.id, task="add", queue="default", attempt=1, max_attempts=5, lease=6)
    with running(context):
        with pytest.raises(LeaseLost):
            send.enqueue()
        with pytest.raises(LeaseLost):
            send.enqueue_many([1])
    with psycopg.connect(mail_dsn) as connection:
        assert connection.execute("SELECT parent_id FROM jobrunner.jobs").fetchall() == [(None,), (None,)]
