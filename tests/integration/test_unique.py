"""`unique` keeps one live job per key, whoever enqueues it and in whatever transaction."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import EnqueueError, JobRunner
from jobrunner.settings import parse_dsn
from tests.support.waiting import wait_until

BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def task(dsn):
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task(unique=True)
    def refresh(user_id: int, *, deep: bool = False): ...

    yield refresh
    jobs.close()


@pytest.fixture
def engine(dsn):
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    yield engine
    engine.dispose()


def count(connection):
    return connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone()[0]


def test_the_second_enqueue_gives_the_first_job(task, connection):
    """Equal arguments give the live job, however they were passed; other arguments, a new one."""
    first, second = task.enqueue(1), task.enqueue(user_id=1)
    assert (first.created, second.created, second.id) == (True, False, first.id)
    assert task.enqueue(2).created
    assert task.enqueue(1, deep=True).created
    assert count(connection) == 3


def test_a_key_of_ones_own_ignores_the_arguments(task):
    """`unique="text"` is the key itself, per task; `unique=False` turns it off."""
    first = task.options(unique="nightly").enqueue(1)
    assert task.options(unique="nightly").enqueue(2).id == first.id
    assert task.options(unique=False).enqueue(1).created
    assert task.options(unique=False).enqueue(1).created


def test_a_finished_job_frees_its_key(task, connection):
    """Only live jobs count: once the row has left `jobs`, the key is free."""
    first = task.enqueue(1)
    first.cancel()
    second = task.enqueue(1)
    assert second.created
    assert second.id != first.id


def test_a_running_job_holds_its_key(task, connection):
    """A job that runs is live."""
    first = task.enqueue(1)
    connection.execute(
        "UPDATE jobrunner.jobs SET state = 'running', worker_id = 1, claimed_at = now(), lease = 1 WHERE id = %s", (first.id,)
    )
    assert task.enqueue(1).id == first.id


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("many", [True, False])
def test_a_second_transaction_waits_for_the_first(task, connection, engine, commits, many):
    """While another transaction holds the key uncommitted, enqueue waits; then it gives that job, or makes its own after a rollback."""
    got: list[int] = []
    with Session(engine) as session:
        first = task.options(session=session).enqueue(1)
        rival = threading.Thread(target=lambda: got.extend(task.enqueue_many([(1,), (1,)]) if many else [task.enqueue(1).id] * 2))
        rival.start()
        wait_until(lambda: connection.execute(BLOCKED).fetchone()[0] == 1, timeout=10, what="the rival waits for the lock")
        session.commit() if commits else session.rollback()
    rival.join(10)
    assert got[0] == got[1]
    assert (got[0] == first.id) is commits
    assert count(connection) == 1


def test_a_batch_gives_every_call_its_job(task, connection):
    """In a batch, calls with a live job get its id, equal calls share one, and the order is that of the calls."""
    old = task.enqueue(5)
    ids = task.enqueue_many([(4,), (5,), (6,), (4,)])
    assert (ids[1], ids[0]) == (old.id, ids[3])
    stored = dict(connection.execute("SELECT id, (args->>'user_id')::int FROM jobrunner.jobs").fetchall())
    assert [stored[job_id] for job_id in ids] == [4, 5, 6, 4]
    many = task.enqueue_many([(number,) for number in range(2500)])
    assert many[4:7] == ids[:3]
    stored = dict(connection.execute("SELECT id, (args->>'user_id')::int FROM jobrunner.jobs").fetchall())
    assert [stored[job_id] for job_id in many] == list(range(2500))
    assert many[7:] == sorted(many[7:])


def test_rival_batches_do_not_deadlock(task, connection):
    """Batches with the same keys in opposite orders all get through and agree on the ids."""
    results: list[dict[int, int]] = []
    errors: list[BaseException] = []

    def work(numbers):
        try:
            results.append(dict(zip(numbers, task.enqueue_many([(number,) for number in numbers]), strict=True)))
        except BaseException as error:  # noqa: BLE001  reported by the test
            errors.append(error)

    numbers = list(range(1500))
    threads = [threading.Thread(target=work, args=(numbers[:: 1 if index % 2 else -1],)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(result == results[0] for result in results)
    assert count(connection) == 1500


def test_a_job_outside_of_the_snapshot_is_explained(task, engine):
    """A REPEATABLE READ transaction that cannot see the holder of the key gets an error, never a second job."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connected:
        connected.execute(sa.text("SELECT count(*) FROM jobrunner.jobs"))
        task.enqueue(1)
        with pytest.raises((EnqueueError, sa.exc.OperationalError)):
            task.options(connection=connected).enqueue(1)
        connected.rollback()
