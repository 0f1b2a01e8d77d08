"""The read-only verbs: lists, counts, one job, why it waits, and the state of the whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from jobrunner import inspection
from jobrunner.database import Database
from jobrunner.errors import InvalidCursor, JobNotFound
from jobrunner.filters import STATE_WORDS, parse
from jobrunner.inspection import Count
from jobrunner.settings import parse_dsn
from jobrunner.store import Store
from tests.support.revisions import at_version
from tests.support.seed import seed
from tests.support.viewrows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = "SELECT id, state FROM jobrunner.v_jobs"


@pytest.fixture
def database(dsn, monkeypatch) -> Iterator[Database]:
    """A pool on the test's database; counts, which are given up after a second, may take their time on a busy machine."""
    monkeypatch.setattr("jobrunner.inspection.lists.COUNT_TIMEOUT", timedelta(minutes=1))
    opened = Database(parse_dsn(dsn, "test"))
    yield opened
    opened.close()


def walk(database, wanted=None, limit=50, *, newer_from=None) -> list[list[int]]:
    """Every page of a list, as ids; with `newer_from` back from that cursor."""
    pages, cursor = [], newer_from
    while True:
        page = inspection.list_jobs(database, filter=wanted, cursor=cursor, limit=limit)
        pages.append([job.id for job in page.items])
        cursor = page.prev if newer_from else page.next
        if cursor is None:
            return pages


def add_worker(connection, *, queues=("default",), tasks=("t",), slots=1, alive=True) -> int:
    """A worker row; a dead one's lease has just expired."""
    row = connection.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at) "
        "VALUES ('w', 'h', 1, 'test', '0', %s, %s, %s, now() + %s) RETURNING id",
        (list(queues), list(tasks), slots, timedelta(hours=1) if alive else timedelta(seconds=-1)),
    ).fetchone()
    return int(row[0])


def add_job(connection, task="t", queue="default", **columns) -> int:
    """A live job row."""
    values = {"task": task, "queue": queue, **columns}
    statement = f"INSERT INTO jobrunner.jobs ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id"
    return int(connection.execute(statement, list(values.values())).fetchone()[0])


def run(connection, job_id, worker) -> None:
    """Let a worker hold a job."""
    connection.execute(
        "UPDATE jobrunner.jobs SET state = 'running', worker_id = %s, lease = 1, attempt = 1, claimed_at = now() WHERE id = %s",
        (worker, job_id),
    )


@pytest.mark.parametrize(
    "text",
    ["", "state:failed", "state:failed,succeeded", "-state:succeeded", "task:send_welcome", "task:s*", "task:mail.*,sync_crm -task:mail.x", "queue:mail",
     "state:queued,running", "-queue:mail,default -state:queued", "task:nothing*", "state:cancelled,quarantined task:resize_image", "-id:5,3000"],
)  # fmt: skip
def test_a_filter_lists_and_counts_exactly_what_it_says(connection, database, text) -> None:
    """Pages together hold each matching job once, the count agrees, and both agree with a plain look at every row."""
    seed(connection, 700)
    wanted = parse(text)
    rows = connection.execute("SELECT id, task, queue, state FROM jobrunner.v_jobs").fetchall()
    expected = {
        job_id
        for job_id, task, queue, state in rows
        if (not wanted.states or state in wanted.states)
        and state not in wanted.not_states
        and (not wanted.tasks or any(pattern.matches(task) for pattern in wanted.tasks))
        and not any(pattern.matches(task) for pattern in wanted.not_tasks)
        and (not wanted.queues or queue in wanted.queues)
        and queue not in wanted.not_queues
        and job_id not in wanted.not_ids
    }
    found = [job_id for page in walk(database, wanted, 40) for job_id in page]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert inspection.count_jobs(database, wanted) == Count(len(expected))


def test_live_jobs_come_first_then_the_last_finished(connection, database) -> None:
    """The order is total: live ones by id, then finished ones by the time they finished, all newest first."""
    seed(connection, 120)
    found = [job_id for page in walk(database, limit=7) for job_id in page]
    live = [row[0] for row in connection.execute("SELECT id FROM jobrunner.jobs ORDER BY id DESC")]
    finished = [row[0] for row in connection.execute("SELECT id FROM jobrunner.job_history ORDER BY finished_at DESC, id DESC")]
    assert found == live + finished


def test_the_way_back_shows_the_same_pages(connection, database) -> None:
    """From the last page `prev` leads back over the same rows, and the first page is whole again."""
    seed(connection, 130)
    there = walk(database, limit=20)
    last = inspection.list_jobs(database, limit=20)
    while last.next:
        last = inspection.list_jobs(database, cursor=last.next, limit=20)
    assert last.prev is not None
    back = walk(database, limit=20, newer_from=last.prev)
    seen = [job_id for page in reversed(back) for job_id in page]
    assert back[-1] == there[0]
    assert set(seen) | {job.id for job in last.items} == {job_id for page in there for job_id in page}


def test_rows_that_finish_at_the_same_instant_are_not_lost(connection, database) -> None:
    """A page boundary inside a batch that finished together drops and repeats nothing."""
    seed(connection, 60)
    connection.execute("UPDATE jobrunner.job_history SET finished_at = date_trunc('hour', now())")
    found = [job_id for page in walk(database, parse("-state:queued,running,scheduled,retrying"), 7) for job_id in page]
    assert sorted(found) == list(range(1, 61))


def test_new_jobs_do_not_shift_the_older_pages(connection, database) -> None:
    """What arrives while somebody pages changes no later page."""
    seed(connection, 50)
    first = inspection.list_jobs(database, limit=10)
    before = inspection.list_jobs(database, cursor=first.next, limit=10)
    add_job(connection, "late")
    assert inspection.list_jobs(database, cursor=first.next, limit=10).items[0].id == before.items[0].id


def test_a_foreign_cursor_is_refused(database) -> None:
    """A cursor that this list did not give is InvalidCursor, before the database is asked."""
    with pytest.raises(InvalidCursor):
        inspection.list_jobs(database, cursor="nonsense")


def test_counts_stop_at_the_cap(connection, database, monkeypatch) -> None:
    """Beyond the cap a count is a lower bound and says so."""
    seed(connection, 100)
    monkeypatch.setattr("jobrunner.inspection.lists.COUNT_CAP", 30)
    assert inspection.count_jobs(database) == Count(30, exact=False)
    assert str(Count(10_000, exact=False)) == "10k+"
    assert str(Count(9_999)) == "9,999"


def test_state_counts_add_up(connection, database) -> None:
    """The numbers of the tabs are those of the view, and keep the filter's other terms."""
    seed(connection, 400)
    counts = inspection.count_states(database, parse("queue:mail state:failed"))
    expected = dict(connection.execute("SELECT state, count(*) FROM jobrunner.v_jobs WHERE queue = 'mail' GROUP BY state").fetchall())
    assert {word: count.value for word, count in counts.items() if count} == {word: expected.get(word, 0) for word in STATE_WORDS}


def test_state_counts_of_a_large_backlog_are_lower_bounds(connection, database, monkeypatch) -> None:
    """Beyond the sample the waiting jobs' counts are lower bounds and say so; the running ones have an index and stay exact."""
    seed(connection, 30)
    monkeypatch.setattr("jobrunner.inspection.lists.LIVE_SAMPLE", 5)
    counts = inspection.count_states(database)
    found = {word: count.exact for word, count in counts.items() if count}
    assert [found[word] for word in ("queued", "scheduled", "retrying", "running", "succeeded")] == [False, False, False, True, True]
    assert counts["running"] == Count(5)
    assert str(Count(3, exact=False)) == "3+"


def test_a_row_has_the_words_and_durations_of_the_database(connection, database) -> None:
    """Waits and runs of jobs still at it are counted by the database's clock, never a worker's or ours."""
    worker = add_worker(connection)
    waiting = add_job(connection, args='{"n": 9007199254740993}')
    connection.execute("UPDATE jobrunner.jobs SET run_at = now() - interval '90 s' WHERE id = %s", (waiting,))
    running = add_job(connection)
    run(connection, running, worker)
    connection.execute(
        "UPDATE jobrunner.jobs SET run_at = now() - interval '60 s', started_at = now() - interval '40 s' WHERE id = %s", (running,)
    )
    later = add_job(connection, run_at=connection.execute("SELECT now() + interval '1 h'").fetchone()[0])
    rows = {job.id: job for job in inspection.list_jobs(database).items}
    assert timedelta(seconds=90) <= (rows[waiting].wait or timedelta()) < timedelta(seconds=100)
    assert timedelta(seconds=40) <= (rows[running].run or timedelta()) < timedelta(seconds=50)
    assert rows[running].wait == pytest.approx(timedelta(seconds=20), abs=timedelta(seconds=1))
    assert (rows[later].state, rows[later].wait) == ("scheduled", None)
    assert rows[waiting].args_excerpt == '{"n": 9007199254740993}'


def test_one_job_has_its_attempts_newest_first(connection, database) -> None:
    """The detail has the whole arguments, every attempt with traceback and worker, and the success as an attempt too."""
    ids = seed(connection, 300)
    detail = inspection.get_job(database, ids["failed"])
    assert [item.attempt for item in detail.attempts] == [3, 2, 1]
    assert detail.attempts[0].traceback is not None
    assert detail.attempts[0].worker == "worker-1@web-1"
    assert detail.waiting_reason is None
    done = inspection.get_job(database, ids["succeeded"])
    assert done.attempts[0].outcome == "succeeded"
    assert (done.retry_refusal, done.cancel_refusal) == ("it succeeded; enqueue a new job to run it again", "it has succeeded")


def test_attempts_are_capped(connection, database, monkeypatch) -> None:
    """A job that snoozed a thousand times shows its newest attempts and says that there are more."""
    ids = seed(connection, 300)
    monkeypatch.setattr("jobrunner.inspection.detail.MAX_ATTEMPTS", 2)
    detail = inspection.get_job(database, ids["failed"])
    assert [item.attempt for item in detail.attempts] == [3, 2]
    assert detail.attempts_left_out


@pytest.mark.parametrize("job_id", [-1, 0, 5, 2**63 - 1, 2**63, 10**30])
def test_an_unknown_id_is_not_found(database, job_id) -> None:
    """Any whole number that is no job is JobNotFound, also one that no bigint can hold."""
    with pytest.raises(JobNotFound):
        inspection.get_job(database, job_id)


def test_values_python_cannot_hold_are_shown_all_the_same(connection, database) -> None:
    """An infinite creation time, an endless time limit or a number of 5,000 digits hides neither the job nor its list."""
    job_id = add_job(connection, created_at="infinity", time_limit="9000000 years", args='{"n": ' + "9" * 5000 + "}")
    detail = inspection.get_job(database, job_id)
    assert "9" * 5000 in detail.args
    assert detail.time_limit is not None
    assert inspection.list_jobs(database).items[0].id == job_id


SITUATIONS = {
    "scheduled": "is scheduled for",
    "retry_due": "waits for its next attempt",
    "no_worker": "no worker is alive",
    "queue_not_served": "no live worker listens on queue 'mail'",
    "task_not_registered": "no live worker on queue 'default' registers task 'other'",
    "slots_busy": "the only slot for it is busy, and 2 jobs are ahead of it",
    "behind": "is due; 1 job is ahead of it, 1 of 1 slots are free",
    "due": "is due and next",
    "after_its_key": "of the same ordering key 'k', which is queued",
    "no_consumer": "no program takes messages of queue 'emails'",
    "running": "runs on worker w (pid 1 on h)",
    "cancelling": "was asked to stop",
    "worker_lost": "whose lease has expired",
}


@pytest.mark.parametrize("code", SITUATIONS)
def test_a_job_says_why_it_is_not_running(connection, database, code) -> None:
    """Each cause that keeps a job from running is told as that cause and no other."""
    later = connection.execute("SELECT now() + interval '1 h'").fetchone()[0]
    worker = add_worker(connection, alive=code not in ("no_worker", "worker_lost"))
    if code in ("slots_busy", "behind"):
        first = add_job(connection)
        if code == "slots_busy":
            add_job(connection)
            add_job(connection)
            run(connection, first, worker)
    job_id = {
        "scheduled": lambda: add_job(connection, run_at=later),
        "retry_due": lambda: add_job(connection, run_at=later, attempt=1),
        "queue_not_served": lambda: add_job(connection, queue="mail"),
        "task_not_registered": lambda: add_job(connection, task="other"),
        "after_its_key": lambda: (add_job(connection, ordering_key="k"), add_job(connection, ordering_key="k"))[1],
        "no_consumer": lambda: add_job(connection, task="jobrunner.message", queue="emails"),
    }.get(code, lambda: add_job(connection))()
    if code in ("running", "cancelling", "worker_lost"):
        run(connection, job_id, worker)
    if code == "cancelling":
        connection.execute("UPDATE jobrunner.jobs SET cancel_requested_at = now() WHERE id = %s", (job_id,))
    reason = inspection.get_job(database, job_id).waiting_reason
    assert reason is not None
    assert reason.code == code
    assert SITUATIONS[code] in str(reason)


def test_one_worker_must_both_listen_and_register(connection, database) -> None:
    """A worker that listens and another that registers the task are no worker for the job."""
    add_worker(connection, queues=("default",), tasks=("x",))
    add_worker(connection, queues=("mail",), tasks=("t",))
    reason = inspection.get_job(database, add_job(connection)).waiting_reason
    assert reason is not None
    assert reason.code == "task_not_registered"


def test_queues_count_what_waits_and_who_listens(connection, database) -> None:
    """A queue's row agrees with the view, and knows the ready jobs that none of its workers can run."""
    seed(connection, 100)
    rows = {row.queue: row for row in inspection.list_queues(database)}
    view = connection.execute(
        "SELECT queue, ready_count, scheduled_count, retrying_count, running_count, worker_count, slot_count, oldest_ready_at FROM jobrunner.v_queues"
    ).fetchall()
    assert {
        row.queue: (row.ready, row.scheduled, row.retrying, row.running, row.workers, row.slots, row.oldest_ready_at)
        for row in rows.values()
    } == {row[0]: tuple(row[1:]) for row in view}
    assert (rows["default"].unserved, rows["gpu"].unserved, rows["gpu"].workers) == (1, 1, 0)
    assert all(row.exact for row in rows.values())


def test_a_large_queue_is_a_lower_bound(connection, database, monkeypatch) -> None:
    """Counting of a queue stops at the sample, and the row says that its numbers are lower bounds."""
    seed(connection, 10)
    monkeypatch.setattr("jobrunner.inspection.overview.QUEUE_SAMPLE", 3)
    rows = {row.queue: row for row in inspection.list_queues(database)}
    assert not rows["default"].exact
    assert rows["gpu"].exact
    assert rows["default"].ready == 4


def test_workers_are_alive_lost_or_stopped(connection, database) -> None:
    """The live ones come first, each with the jobs it runs; a lost one is told from one that stopped."""
    seed(connection, 10)
    rows = inspection.list_workers(database)
    assert [row.state for row in rows] == ["alive", "alive", "stopped", "stopped", "lost"]
    assert sum(row.running for row in rows) == 5


def test_status_names_the_problems(connection, database) -> None:
    """Status has what is wrong in words, the worst first, and nothing when nothing is."""
    seed(connection, 300)
    status = inspection.status(database)
    assert status.schema.up_to_date
    assert {problem.code for problem in status.problems} == {"workers_lost", "unserved"}
    assert {(row.task, row.queue) for row in status.unserved} >= {("export.gdpr", "default"), ("video.encode", "gpu")}
    assert status.failed_last_hour.value > 0
    connection.execute("UPDATE jobrunner.workers SET lease_expires_at = now() - interval '1 s' WHERE stopped_at IS NULL")
    problems = inspection.status(database).problems
    assert problems[0].code == "no_worker"
    assert "and jobs wait" in problems[0].text


@pytest.mark.parametrize("settled", [False, True], ids=["counted", "settled"])
def test_status_counts_the_jobs_that_failed_within_the_hour(connection, database, settled) -> None:
    """Failed and quarantined jobs of the last hour, to the minute, however many; neither older ones nor attempts that are tried again."""
    rows, now = Rows(connection), datetime.now(UTC)
    for minutes, state in ((0, "failed"), (50, "failed"), (59, "quarantined"), (62, "failed"), (1, "succeeded"), (1, "cancelled")):
        rows.finished(state, finished_at=now - timedelta(minutes=minutes))
    rows.attempt(1, "retried")
    if settled:
        assert Store(connection).settle_rollups(timedelta(minutes=2), timedelta(days=1), 100) == 3
    assert inspection.status(database).failed_last_hour == Count(3)


def test_a_schema_that_does_not_fit_is_the_first_problem(connection, database) -> None:
    """An outdated or too new schema is told before anything else."""
    with at_version(connection, "9999"):
        assert inspection.pulse(database).problems[0].code == "schema_too_new"
