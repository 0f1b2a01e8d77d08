"""What `top` asks: throughput of ten minutes, errors of an hour, lists in the order that matters, all of it read in three statements."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from jobrunner import inspection
from jobrunner.database import Database
from jobrunner.errors import QueryTimeout
from jobrunner.filters import parse
from jobrunner.inspection import Count, glance, recent
from jobrunner.settings import parse_dsn
from jobrunner.states import State
from tests.support.rows import Scene
from tests.support.seed import seed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def database(dsn) -> Iterator[Database]:
    """A pool on the test's database."""
    opened = Database(parse_dsn(dsn, "test"))
    yield opened
    opened.close()


@pytest.fixture
def scene(connection) -> Scene:
    """Verbs to put rows there."""
    return Scene(connection)


def finish(scene, count, *, ago=0, at=None, state="succeeded", queue="default", run_ms=10, wait_ms=5) -> None:
    """So many jobs that ended so many seconds ago, or then."""
    scene.execute(
        "INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,"
        " backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, started_at, finished_at, wait_ms, run_ms)"
        " SELECT nextval(pg_get_serial_sequence('jobrunner.jobs', 'id')), 't', '{}', %(queue)s, 0, '{}', at, at, %(state)s, 1, 1, 5,"
        " 'constant', '1 s', '1 s', 0, 0, 3, at, at, %(wait_ms)s, %(run_ms)s"
        " FROM (SELECT coalesce(%(at)s, now() - %(ago)s * interval '1 second') AS at FROM generate_series(1, %(count)s)) AS times",
        {"count": count, "ago": ago, "at": at, "state": state, "queue": queue, "run_ms": run_ms, "wait_ms": wait_ms},
    )


def go_wrong(
    scene, job_id, *, fingerprint="f1", error_type="ValueError", message="bad", cause="exception", ago=1, task="t", outcome="retried"
) -> None:
    """An attempt that did not succeed."""
    scene.execute(
        "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, finished_at, outcome, error_type, message, fingerprint,"
        " exit_cause) VALUES (%s, 1, nextval(pg_get_serial_sequence('jobrunner.jobs', 'id')), %s, 'default',"
        " now() - %s * interval '1 second', %s, %s, %s, %s, %s)",
        (job_id, task, ago, outcome, error_type, message, fingerprint, cause),
    )


def ids(database, view, text="", **options) -> list[int]:
    """The jobs of a list."""
    return [job.id for job in glance(database, view, parse(text), **options).jobs]


@pytest.mark.parametrize("settled", [False, True], ids=["counted", "settled"])
def test_throughput_is_told_by_minute_and_queue(scene, database, settled) -> None:
    """Ten minutes by the clock, the oldest first, of all and of each queue; neither what is older counts, nor an attempt that was not the last."""
    now = scene.one("SELECT date_bin('1 minute', now(), 'epoch')")
    last, *_ = minutes = [now - timedelta(minutes=ago) for ago in (0, 2, 8)]
    finish(scene, 4, at=last)
    finish(scene, 3, at=last, queue="mail")
    finish(scene, 2, at=minutes[1] + timedelta(seconds=59), state="failed")
    finish(scene, 1, at=minutes[2], state="quarantined", queue="mail")
    finish(scene, 9, at=now - timedelta(minutes=9, microseconds=1))
    go_wrong(scene, 1)
    assert scene.store.settle_rollups(timedelta(seconds=65), timedelta(days=1), 1_000) == 3 if settled else True
    found = glance(database)
    throughput = found.lately.throughput
    first = found.at - throughput.span
    places = [round((minute - first).total_seconds() / 60) for minute in minutes]  # the next minute may have begun
    per_minute, per_queue = throughput.per_minute, throughput.per_queue
    assert [per_minute[place] for place in places] == [7, 2, 1]
    assert [per_queue["default"][place] for place in places] == [4, 2, 0]
    assert [per_queue["mail"][place] for place in places] == [3, 0, 1]
    assert sum(per_minute) == throughput.ended == 10
    assert (throughput.succeeded, throughput.failed) == (7, 3)
    assert throughput.failed_share == pytest.approx(0.3)
    assert len(per_minute) == len(per_queue["mail"]) == 10
    assert timedelta(minutes=9) <= throughput.span <= timedelta(minutes=10)


def test_the_rate_is_that_of_the_last_minute(scene, database) -> None:
    """Successes of the last 60 to 70 seconds, divided by just that time; a burst of a moment is no rate of millions."""
    finish(scene, 140, ago=30)
    finish(scene, 100, ago=30, state="failed")
    finish(scene, 900, ago=71)
    assert 2 <= glance(database).lately.throughput.succeeded_per_second <= 140 / 60


def test_percentiles_are_of_what_ran(scene, database) -> None:
    """p50, p95 and p99 of run and wait; a job cancelled before it ran has neither, and without any there are none."""
    assert glance(database).lately.throughput.run is None
    finish(scene, 90, ago=5, run_ms=100, wait_ms=1)
    finish(scene, 8, ago=5, run_ms=2_000, wait_ms=50)
    finish(scene, 2, ago=5, run_ms=9_000, wait_ms=700)
    finish(scene, 50, ago=5, state="cancelled", run_ms=None, wait_ms=None)
    found = glance(database).lately.throughput
    assert found.run
    assert found.wait
    milliseconds = [[value.total_seconds() * 1000 for value in (each.p50, each.p95, each.p99)] for each in (found.run, found.wait)]
    assert milliseconds == [[100, 2_000, 9_000], [1, 50, 700]]
    assert found.ended == 150


def test_percentiles_are_of_the_newest(scene, database, monkeypatch) -> None:
    """However many finished, only so many are looked at for how long they took; the counts are of all."""
    monkeypatch.setattr(recent, "FINISHED_SAMPLE", 40)
    finish(scene, 60, ago=5, run_ms=9_000)
    finish(scene, 40, ago=1, run_ms=100)
    found = glance(database).lately.throughput
    assert found.run
    assert found.run.p99 == timedelta(milliseconds=100)
    assert found.ended == 100


def test_who_is_at_it(scene, database) -> None:
    """Slots are those of live workers, each counted once; what runs is counted wherever it runs."""
    scene.worker()
    scene.worker("expired")
    scene.worker("stopped")
    scene.job(State.RUNNING)
    found = glance(database)
    assert (found.lately.workers_alive, found.lately.slots, found.lately.running) == (2, 2, 1)
    assert [(row.queue, row.running) for row in found.queues] == [("default", 1)]


def test_running_jobs_begin_with_the_one_that_runs_longest(scene, database) -> None:
    """The list of running jobs is by age, with the names of their workers; a filter narrows it."""
    worker = scene.worker()
    young = scene.job(State.RUNNING, worker_id=worker, claimed_at="=now() - interval '5 s'", queue="mail")
    old = scene.job(State.RUNNING, worker_id=worker, claimed_at="=now() - interval '9 s'", started_at="=now() - interval '8 s'")
    scene.job(State.QUEUED)
    found = glance(database, "running")
    assert [job.id for job in found.jobs] == [old, young]
    assert found.worker_names == {worker: "w"}
    assert found.jobs[0].run
    assert found.jobs[0].run >= timedelta(seconds=8)
    assert ids(database, "running", "queue:mail") == [young]
    assert ids(database, "running", "state:queued") == []
    assert ids(database, "running", limit=1) == [old]
    assert glance(database, "running", limit=1).more


def test_ready_jobs_are_in_the_order_in_which_they_are_taken(scene, database) -> None:
    """Due jobs by priority, then by time, retries among them, of all queues; jobs that are due later are not there."""
    late = scene.job(State.QUEUED, run_at="=now() - interval '1 s'")
    early = scene.job(State.QUEUED, run_at="=now() - interval '9 s'", queue="mail")
    retrying = scene.job(State.QUEUED, run_at="=now() - interval '5 s'", attempt=1)
    urgent = scene.job(State.QUEUED, priority=-5, task="other")
    scene.job(State.QUEUED, run_at="=now() + interval '1 h'", priority=-9)
    scene.job(State.RUNNING)
    assert ids(database, "ready") == [urgent, early, retrying, late]
    assert ids(database, "ready", limit=2) == [urgent, early]
    assert ids(database, "ready", "queue:default") == [urgent, retrying, late]
    assert ids(database, "ready", "task:oth*") == [urgent]
    assert ids(database, "ready", "state:retrying") == [retrying]
    assert ids(database, "ready", "-state:retrying -queue:mail") == [urgent, late]
    assert ids(database, "ready", "state:scheduled") == []


def test_failed_jobs_are_the_newest_first(scene, database) -> None:
    """Failed and quarantined ones; not what was cancelled or succeeded."""
    finish(scene, 2, ago=90, state="failed")
    finish(scene, 1, ago=30, state="quarantined", queue="mail")
    finish(scene, 3, ago=1, state="cancelled")
    finish(scene, 3, ago=1)
    assert [job.state for job in glance(database, "failed").jobs] == ["quarantined", "failed", "failed"]
    assert [job.state for job in glance(database, "failed", parse("queue:mail")).jobs] == ["quarantined"]
    assert [job.state for job in glance(database, "failed", parse("state:failed")).jobs] == ["failed", "failed"]


def test_errors_are_grouped_by_what_and_where(scene, database) -> None:
    """Attempts of an hour, by fingerprint; those whose process ended by its cause; with the newest message, job and task of each."""
    for job_id, ago in ((1, 50), (1, 40), (2, 30)):
        go_wrong(scene, job_id, ago=ago, message=f"bad {job_id}", task=f"t{job_id}")
    go_wrong(scene, 3, fingerprint=None, error_type=None, message="killed by signal 9", cause="signal 9", outcome="crashed")
    go_wrong(scene, 4, fingerprint="f2", error_type="KeyError", message="'sku'", outcome="failed")
    go_wrong(scene, 4, fingerprint="f2", error_type="KeyError", message="'sku'", ago=3_700)
    go_wrong(scene, 5, outcome="snoozed")
    go_wrong(scene, 5, outcome="released", cause="deploy")
    first, *rest = glance(database, "errors").errors
    assert (first.fingerprint, first.error_type, first.exit_cause) == ("f1", "ValueError", None)
    assert (first.events, first.jobs, first.tasks, first.task) == (Count(3), Count(2), 2, "t2")
    assert (first.message, first.job_id) == ("bad 2", 2)
    assert (first.last_at - first.first_at).total_seconds() == pytest.approx(20, abs=5)
    assert {(group.error_type, group.exit_cause, group.job_id) for group in rest} == {(None, "signal 9", 3), ("KeyError", None, 4)}
    assert [group.job_id for group in glance(database, "errors", parse("task:t1")).errors] == [1]
    assert [group.job_id for group in glance(database, "errors", parse("id:4")).errors] == [4]


def test_groups_of_more_errors_than_are_looked_at_are_lower_bounds(scene, database, monkeypatch) -> None:
    """The newest attempts are looked at; the counts then say that there may be more."""
    monkeypatch.setattr(recent, "ERROR_SAMPLE", 5)
    for number in range(8):
        go_wrong(scene, number + 1, ago=number)
    (group,) = glance(database, "errors").errors
    assert (group.events, group.job_id) == (Count(5, exact=False), 1)


def test_workers_are_filtered_by_what_they_serve(connection, database) -> None:
    """By queue and task that a live worker serves; stopped ones come last."""
    seed(connection, 20)
    assert [row.state for row in glance(database, "workers").workers] == ["alive", "alive", "stopped", "stopped", "lost"]
    names = {row.name for row in glance(database, "workers", parse("queue:media")).workers}
    assert names == {"worker-1@web-1"}


def test_a_look_is_three_statements(connection, database) -> None:
    """Whatever is looked at: one statement for the queues, one for what happened lately, one for the list, two where little failed."""
    seed(connection, 50)
    sent: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    for view in inspection.VIEWS:
        sent.clear()
        glance(database, view)
        assert sum("set_config" not in statement for statement in sent) == (4 if view == "failed" else 3), view


def test_a_list_that_takes_too_long_leaves_the_rest(connection, database, monkeypatch) -> None:
    """When the server ends the statement of the list, numbers and queues are there all the same, and what happened is said."""
    seed(connection, 50)
    slow = sa.select(sa.func.pg_sleep(30))
    monkeypatch.setattr("jobrunner.inspection.glances.list_statements", lambda *_: iter([slow]))
    monkeypatch.setattr("jobrunner.inspection.glances.reading", lambda database: inspection.reading(database, timedelta(minutes=1)))

    def hurry(_connection, cursor, statement, *_) -> None:
        if "pg_sleep" in statement:  # only this one: on a busy machine the others may take their time
            cursor.execute("SET LOCAL statement_timeout = '200ms'")

    sa.event.listen(database.engine, "before_cursor_execute", hurry)
    found = glance(database, "ready")
    assert isinstance(found.trouble, QueryTimeout)
    assert found.jobs == ()
    assert found.queues
    assert found.lately.throughput.ended
