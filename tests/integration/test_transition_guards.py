"""What the guards of the transitions promise beyond the state: attempts and crashes left, cancel requests, blame for a lost worker."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.jobs import Ending, Succeeded, Unsuccessful, WorkerCounts, WorkerSight
from jobrunner.states import State
from tests.support.rows import ALIVE, EXPIRED, LEASE, STOPPED, TASK, Scene

HUGE = 32767  # the largest smallint
NOT_SUCCESS = list(Ending)


def outcome(ending: Ending, job_id: int, lease: int = LEASE, **more: object) -> Unsuccessful:
    """An attempt that ended so, as a worker would report it."""
    values: dict[str, object] = {"error_type": "builtins.ValueError", "message": "no", "run_ms": 5, "cpu_ms": 1, "delay_ms": 10, **more}
    return Unsuccessful(ending, job_id, lease, **values)  # type: ignore[arg-type]


def finish(scene: Scene, *outcomes: Unsuccessful | Succeeded) -> None:
    """Report outcomes, all of which must be accepted."""
    assert scene.store.finish(outcomes) == []


@pytest.mark.parametrize(
    ("attempt", "max_attempts", "expected"), [(1, 2, "queued"), (2, 2, "failed"), (3, 2, "failed"), (HUGE, HUGE, "failed")]
)
def test_retry_only_with_attempts_left(connection, attempt, max_attempts, expected):
    """An attempt that raised is tried again exactly when fewer attempts were used than allowed; else the job has failed."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, attempt=attempt, max_attempts=max_attempts)
    finish(scene, outcome(Ending.RETRY, job_id))
    row = scene.row(job_id)
    assert (row["state"], row["attempt"]) == (expected, attempt)
    assert (row["last_error_type"], row["last_error"]) == ("builtins.ValueError", "no")


@pytest.mark.parametrize(
    ("crash_count", "max_crashes", "expected"),
    [(0, 3, "queued"), (1, 3, "queued"), (2, 3, "quarantined"), (0, 1, "quarantined"), (7, 3, "quarantined")],
)
def test_crash_only_with_crashes_left(connection, crash_count, max_crashes, expected):
    """An attempt whose process died is given back until `max_crashes` is reached; then the job is quarantined."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, crash_count=crash_count, max_crashes=max_crashes)
    finish(scene, outcome(Ending.CRASH, job_id))
    row = scene.row(job_id)
    assert (row["state"], row["crash_count"]) == (expected, crash_count + 1)


@pytest.mark.parametrize(("ending", "expected"), [(Ending.CRASH, 4), (Ending.SNOOZE, 4), (Ending.RELEASE, 4), (Ending.RETRY, 5)])
def test_which_endings_give_the_attempt_back(connection, ending, expected):
    """Only an attempt that raised uses one up; a crash, a snooze and a release give it back."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, attempt=5, max_attempts=9)
    finish(scene, outcome(ending, job_id))
    assert scene.row(job_id)["attempt"] == expected


@pytest.mark.parametrize(("ending", "expected"), [(Ending.CRASH, 2), (Ending.RELEASE, 1), (Ending.SNOOZE, 0), (Ending.RETRY, 0)])
def test_which_endings_clear_the_crash_count(connection, ending, expected):
    """Task code that came to its end proves that the job does not kill its process; a release proves nothing."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, crash_count=1, max_crashes=5)
    finish(scene, outcome(ending, job_id))
    assert scene.row(job_id)["crash_count"] == expected


@pytest.mark.parametrize("ending", NOT_SUCCESS)
def test_a_job_asked_to_cancel_ends_cancelled(connection, ending):
    """Whichever way an attempt ends without success, a job that somebody asked to cancel goes nowhere but to cancelled."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, attempt=1, max_attempts=9, max_crashes=9)
    assert scene.store.cancel(job_id) == "requested"
    finish(scene, outcome(ending, job_id))
    assert scene.state(job_id) is State.CANCELLED
    assert [attempt["outcome"] for attempt in scene.attempts(job_id)] == ["cancelled"]


def test_a_job_asked_to_cancel_that_succeeds_has_succeeded(connection):
    """A cancel request that comes too late does not undo what was done."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING)
    scene.store.cancel(job_id)
    finish(scene, Succeeded(job_id, LEASE, None, 1, 1, 1.0))
    assert scene.state(job_id) is State.SUCCEEDED


def test_asking_twice_keeps_the_first_instant(connection):
    """A repeated cancel request does not move the instant of the first."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, cancel_requested_at="=now() - interval '1 minute'")
    before = scene.snapshot()
    assert scene.store.cancel(job_id) == "requested"
    assert scene.snapshot() == before


def test_a_release_that_never_began_leaves_no_record(connection):
    """Taken back unstarted is no attempt; a release of a running attempt is one."""
    scene = Scene(connection)
    unstarted, started = scene.job(State.RUNNING), scene.job(State.RUNNING)
    finish(scene, outcome(Ending.RELEASE, unstarted, run_ms=None), outcome(Ending.RELEASE, started))
    assert scene.attempts(unstarted) == []
    assert [attempt["outcome"] for attempt in scene.attempts(started)] == ["released"]


def test_only_the_accepted_of_a_batch_are_written(connection):
    """One batch of every ending, some with a stale lease: exactly the stale ones are reported and have left no trace."""
    scene = Scene(connection)
    endings: list[Ending | None] = [None, *NOT_SUCCESS]
    good = [scene.job(State.RUNNING) for _ in endings]
    stale = [scene.job(State.RUNNING) for _ in endings]

    def report(ending: Ending | None, job_id: int, lease: int) -> Unsuccessful | Succeeded:
        return Succeeded(job_id, lease, None, 1, 1, 1.0) if ending is None else outcome(ending, job_id, lease)

    before = {job_id: scene.row(job_id) for job_id in stale}
    refused = [report(ending, job_id, LEASE - 1) for ending, job_id in zip(endings, stale, strict=True)]
    accepted = [report(ending, job_id, LEASE) for ending, job_id in zip(endings, good, strict=True)]
    assert sorted(scene.store.finish([*refused, *accepted]), key=str) == sorted(refused, key=str)
    assert {job_id: scene.row(job_id) for job_id in stale} == before
    assert State.RUNNING not in {scene.state(job_id) for job_id in good}


@pytest.mark.parametrize("turn", [1, -1])
def test_two_attempts_of_one_job_in_one_batch(connection, turn):
    """When a worker claims a job again that it had lost, and reports both attempts at once, the older one is refused."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING)
    older, current = Succeeded(job_id, LEASE - 1, "1", 1, 1, 1.0), Succeeded(job_id, LEASE, "2", 1, 1, 1.0)
    assert scene.store.finish([older, current][::turn]) == [older]
    assert scene.row(job_id)["result"] == 2


RESCUES = {
    "the first crash is counted though the start is not on record": ((0, 3, False), ("queued", 1)),
    "a start on record is counted": ((1, 3, True), ("queued", 2)),
    "a job that crashed before and is not known to have begun is not blamed": ((1, 3, False), ("queued", 1)),
    "one crash from the limit and not known to have begun: not blamed": ((2, 3, False), ("queued", 2)),
    "one crash from the limit and known to have begun": ((2, 3, True), ("quarantined", 3)),
    "a single crash allowed and not known to have begun: given back": ((0, 1, False), ("queued", 0)),
    "a single crash allowed and known to have begun": ((0, 1, True), ("quarantined", 1)),
    "at the limit already and not known to have begun: not left behind": ((3, 3, False), ("queued", 3)),
    "above the limit and known to have begun": ((HUGE, 1, True), ("quarantined", HUGE)),
    "above the limit and not known to have begun": ((HUGE, 1, False), ("queued", HUGE)),
}


@pytest.mark.parametrize("asked", [False, True], ids=["", "cancel_requested"])
@pytest.mark.parametrize(("given", "expected"), RESCUES.values(), ids=RESCUES)
def test_whom_a_rescue_blames(connection, given, expected, asked):
    """A lost worker's job is charged with a crash when it may have caused it; all leave the running state, one way or another."""
    crash_count, max_crashes, started = given
    scene = Scene(connection)
    worker = scene.worker(EXPIRED)
    job_id = scene.job(
        State.RUNNING, worker_id=worker, attempt=2, crash_count=crash_count, max_crashes=max_crashes,
        started_at="=now()" if started else None, cancel_requested_at="=now()" if asked else None,
    )  # fmt: skip
    lost, moved = scene.store.rescue()
    assert ([each.id for each in lost], moved) == ([worker], 1)
    row = scene.row(job_id)
    if asked:
        assert row["state"] == "cancelled"
        return
    assert (row["state"], row["crash_count"]) == expected
    assert row["attempt"] == (1 if expected[0] == "queued" else 2)
    counted = expected[1] > crash_count
    assert [each["outcome"] for each in scene.attempts(job_id)] == [
        "quarantined" if expected[0] == "quarantined" else "crashed" if counted else "released"
    ]


@pytest.mark.parametrize("crash_count", [0, 1, 2, 3, HUGE])
@pytest.mark.parametrize("max_crashes", [1, 3])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_the_three_rescues_divide_the_jobs_between_them(connection, crash_count, max_crashes, started, asked):
    """Each job of a lost worker is taken by exactly one of the three statements, in whatever order they come."""
    scene = Scene(connection)
    worker = scene.worker(EXPIRED)
    job_id = scene.job(
        State.RUNNING, worker_id=worker, crash_count=crash_count, max_crashes=max_crashes,
        started_at="=now()" if started else None, cancel_requested_at="=now()" if asked else None,
    )  # fmt: skip
    taken = []
    for name in ("rescue", "rescue_quarantine", "rescue_abort"):
        with connection.transaction(force_rollback=True):
            taken += scene.run(name, {"worker_ids": [worker]})
    assert taken == [job_id]


def test_a_worker_that_left_in_order_is_no_lost_one(connection):
    """What an orderly worker left behind is brought back, without the alarm of a lost worker; a lost one is announced once."""
    scene = Scene(connection)
    orderly, lost = scene.worker(STOPPED), scene.worker(EXPIRED)
    jobs = [scene.job(State.RUNNING, worker_id=worker) for worker in (orderly, lost)]
    found, moved = scene.store.rescue()
    assert ([worker.id for worker in found], moved) == ([lost], 2)
    assert {scene.state(job_id) for job_id in jobs} == {State.QUEUED}
    scene.execute("UPDATE jobrunner.workers SET rescued_at = rescued_at - interval '2 minutes'")
    assert scene.store.rescue() == ([], 0)


def test_a_rescue_that_blames_nobody_keeps_the_turn(connection):
    """A job that is not charged keeps its place in the queue; the first crash does as well; a second waits for its backoff."""
    scene = Scene(connection)
    worker = scene.worker(EXPIRED)
    due = "=date_trunc('hour', now()) - interval '1 day'"
    common = {"worker_id": worker, "run_at": due, "max_crashes": 5, "backoff_jitter": 0}
    unblamed = scene.job(State.RUNNING, crash_count=1, **common)
    first = scene.job(State.RUNNING, crash_count=0, **common)
    second = scene.job(State.RUNNING, crash_count=1, started_at="=now()", **common)
    scene.store.rescue()
    run_at = {job_id: scene.row(job_id)["run_at"] for job_id in (unblamed, first, second)}
    assert run_at[unblamed] == run_at[first] < run_at[second]


@pytest.mark.parametrize(
    ("crash_count", "max_crashes", "suspect"), [(0, 3, False), (1, 3, True), (0, 1, True), (1, 1, True)]
)
def test_suspects_are_those_a_rescue_would_not_blame_unstarted(connection, crash_count, max_crashes, suspect):
    """A claim marks the jobs whose start must be on record first: those that a rescue otherwise gives back uncharged."""
    scene = Scene(connection)
    scene.job(crash_count=crash_count, max_crashes=max_crashes)
    (job,) = scene.store.claim(scene.worker(), [TASK], "default", 0, 1)
    assert job.suspect is suspect


def test_start_is_recorded_with_its_age_and_forgotten_by_the_next_claim(connection):
    """`start` dates the beginning back by the age given; the next attempt begins without one."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING)
    assert scene.store.start([(job_id, LEASE, 60.0), (job_id + 1, LEASE, 0.0)]) == {job_id}
    age = scene.one("SELECT now() - started_at FROM jobrunner.jobs WHERE id = %s", (job_id,))
    assert timedelta(seconds=60) <= age < timedelta(seconds=90)
    finish(scene, outcome(Ending.RELEASE, job_id))
    (job,) = scene.store.claim(scene.worker(), [TASK], "default", 0, 1)
    assert (job.id, scene.row(job_id)["started_at"]) == (job_id, None)


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.QUARANTINED])
def test_requeue_starts_crashes_anew_and_allows_one_more_attempt(connection, state):
    """A job that was brought back is due now, may run once more even with no attempt left, and has no crash against it."""
    scene = Scene(connection)
    job_id = scene.job(state, attempt=5, max_attempts=5, crash_count=3, run_at="=now() + interval '1 day'")
    assert scene.store.requeue(job_id) == "default"
    row = scene.row(job_id)
    assert (row["attempt"], row["max_attempts"], row["crash_count"]) == (5, 6, 0)
    (job,) = scene.store.claim(scene.worker(), [TASK], "default", 0, 1)
    assert (job.id, job.attempt) == (job_id, 6)


@pytest.mark.parametrize(("life", "renewed"), [(ALIVE, True), (EXPIRED, False), (STOPPED, False)])
def test_a_heartbeat_renews_only_a_lease_that_holds(connection, life, renewed):
    """A worker whose lease is over, or whose row is closed, cannot come back; the row stays as it was."""
    scene = Scene(connection)
    worker = scene.worker(life)
    query = "SELECT row_to_json(w)::text FROM jobrunner.workers w WHERE id = %s"
    before = scene.one(query, (worker,))
    assert scene.store.heartbeat(worker, timedelta(hours=2), WorkerSight(1), WorkerCounts(1, 2, 3)) is renewed
    assert (scene.one(query, (worker,)) != before) is renewed


def test_run_now_never_delays(connection):
    """A scheduled job becomes due; one that is due already keeps its turn."""
    scene = Scene(connection)
    later, due = scene.job(run_at="=now() + interval '1 year'"), scene.job(run_at="=now() - interval '1 hour'")
    turn = scene.row(due)["run_at"]
    assert [scene.store.requeue(job_id) for job_id in (later, due)] == ["default", "default"]
    assert scene.row(due)["run_at"] == turn
    assert scene.one("SELECT run_at <= now() FROM jobrunner.jobs WHERE id = %s", (later,)) is True
