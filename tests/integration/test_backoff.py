"""The pause before the next attempt: exact arithmetic from the row's own columns, and no column value that could wedge a worker."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from jobrunner.states import State
from tests.support.rows import EXPIRED, LEASE, TASK, Scene, fenced_parameters

HUGE = 32767
BASE, CAP = 2, 100  # seconds
EXPECTED = {
    "constant": {1: 2, 2: 2, 3: 2, 50: 2, HUGE: 2},
    "linear": {0: 2, 1: 2, 2: 4, 3: 6, 50: 100, 51: 100, HUGE: 100},
    "exponential": {0: 2, 1: 2, 2: 4, 3: 8, 6: 64, 7: 100, 40: 100, HUGE: 100},
}
CASES = [(kind, n, seconds) for kind, row in EXPECTED.items() for n, seconds in row.items()]
CENTURY = 3_155_760_000  # seconds

INTERVALS = ["0", "1 microsecond", "5 seconds", "178000000 years", "2147483647 days", "-12 months 360 days", "12 months -360 days"]
ENDINGS = ("retry", "crash")


def delay(scene: Scene, kind: str, base: str, cap: str, jitter: float, n: int) -> float:
    """What the database's function says, in seconds."""
    query = "SELECT extract(epoch FROM jobrunner.backoff_delay(%s, %s::interval, %s::interval, %s::real, %s))"
    return float(scene.one(query, (kind, base, cap, jitter, n)))


@pytest.mark.parametrize(("kind", "n", "seconds"), CASES)
def test_without_jitter_the_pause_is_exact(connection, kind, n, seconds):
    """base, base·n or base·2ⁿ⁻¹, and never above the cap."""
    assert delay(Scene(connection), kind, f"{BASE} seconds", f"{CAP} seconds", 0, n) == seconds


@pytest.mark.parametrize("jitter", [1, 0.25])
def test_with_jitter_the_pause_lies_between_its_share_and_the_whole(connection, jitter):
    """Jitter takes away at most its share, and pauses differ; full jitter is anything from 0 to the whole."""
    scene = Scene(connection)
    pause = "extract(epoch FROM jobrunner.backoff_delay('exponential', '8 s', '1 h', %s::real, 3))"
    pauses = [float(row[0]) for row in scene.execute(f"SELECT {pause} FROM generate_series(1, 200)", (jitter,)).fetchall()]
    assert all(32 * (1 - jitter) <= pause <= 32 for pause in pauses)
    assert len(set(pauses)) > 100
    assert max(pauses) - min(pauses) > 32 * jitter / 2


@pytest.mark.parametrize(("ending", "counted"), [("retry", "attempt"), ("crash", "crash_count")])
@pytest.mark.parametrize(("kind", "n", "seconds"), [case for case in CASES if 0 < case[1] < HUGE])
def test_a_job_waits_as_its_columns_say(connection, kind, n, seconds, ending, counted):
    """A retry counts attempts and a crash counts crashes, the first of which costs no pause."""
    scene = Scene(connection)
    job_id = scene.job(
        State.RUNNING, backoff=kind, backoff_base=f"{BASE} seconds", backoff_cap=f"{CAP} seconds", backoff_jitter=0,
        max_attempts=HUGE, max_crashes=HUGE, **{counted: n},
    )  # fmt: skip
    assert scene.run(ending, fenced_parameters(ending, [(job_id, LEASE)])) == [job_id]
    pause = scene.one("SELECT extract(epoch FROM run_at - last_error_at) FROM jobrunner.jobs WHERE id = %s", (job_id,))
    assert float(pause) == seconds


def test_a_rescue_waits_as_a_crash_does(connection):
    """The backoff after a lost worker is that of a crash of the same count."""
    scene = Scene(connection)
    worker = scene.worker(EXPIRED)
    common = {"backoff": "linear", "backoff_base": "2 seconds", "backoff_jitter": 0, "max_crashes": 9, "started_at": "=now()"}
    job_id = scene.job(State.RUNNING, worker_id=worker, crash_count=3, **common)
    scene.store.rescue()
    pause = scene.one("SELECT extract(epoch FROM run_at - last_error_at) FROM jobrunner.jobs WHERE id = %s", (job_id,))
    assert float(pause) == 6


@pytest.mark.parametrize("ending", ["retry", "snooze"])
@pytest.mark.parametrize(
    ("delay_ms", "seconds"), [(0, 0), (1500, 1.5), (-5, 0), (1000 * CENTURY - 1, CENTURY - 0.001), (2**63 - 1, CENTURY)]
)
def test_a_pause_asked_for_is_kept_up_to_a_century(connection, ending, delay_ms, seconds):
    """`Retry(delay=…)` and `Snooze(…)` are taken as given; what no timestamp can hold is cut and does not wedge the batch."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING, backoff_base="77 seconds", backoff_jitter=0)
    before = scene.one("SELECT clock_timestamp()")
    assert scene.run(ending, fenced_parameters(ending, [(job_id, LEASE)], delay_ms=delay_ms)) == [job_id]
    pause = (scene.row(job_id)["run_at"] - before).total_seconds()
    assert seconds <= pause < seconds + 30


def test_a_snooze_without_a_pause_is_due_at_once(connection):
    """A missing pause is none."""
    scene = Scene(connection)
    job_id = scene.job(State.RUNNING)
    assert scene.run("snooze", fenced_parameters("snooze", [(job_id, LEASE)])) == [job_id]
    assert scene.one("SELECT run_at <= now() FROM jobrunner.jobs WHERE id = %s", (job_id,)) is True


def test_no_column_value_makes_a_finish_raise(connection):
    """Every combination of extreme values goes through claim, retry, crash, rescue and requeue; each pause is within a year."""
    scene = Scene(connection)
    intervals = [*INTERVALS, *(["infinity"] if connection.info.server_version >= 170000 else [])]
    kinds, counts, jitters = EXPECTED, (0, 1, HUGE - 1, HUGE), (0, 1)
    combinations = list(itertools.product(kinds, intervals, intervals, jitters, counts))
    scene.execute(
        "INSERT INTO jobrunner.jobs (task, backoff, backoff_base, backoff_cap, backoff_jitter, attempt, crash_count, max_attempts,"
        " max_crashes, time_limit)"
        " SELECT %s, b, base::interval, cap::interval, jitter, n, n, 32767, 32767, greatest(base::interval, '1 us')"
        " FROM unnest(%s::text[], %s::text[], %s::text[], %s::real[], %s::int[]) AS x (b, base, cap, jitter, n)",
        (TASK, *[list(column) for column in zip(*combinations, strict=True)]),
    )
    accepted = {"retry": 0, "crash": 0}
    for ending in ENDINGS:
        worker = scene.worker()
        jobs = scene.store.claim(worker, [TASK], "default", 0, HUGE)
        assert len(jobs) == len(combinations)
        assert all(job.time_limit_ms is None or abs(job.time_limit_ms) > 0 for job in jobs)
        accepted[ending] = len(scene.run(ending, fenced_parameters(ending, [(job.id, job.lease) for job in jobs])))
        assert 0 < accepted[ending] <= len(jobs)
        late = scene.one("SELECT max(run_at - now()) FROM jobrunner.jobs WHERE state = 'queued'")
        assert late.days <= 366
        scene.age_worker(worker)
        scene.store.rescue()
        scene.execute("UPDATE jobrunner.jobs SET run_at = now() - interval '1 minute' WHERE state = 'queued'")
    assert accepted["retry"] == sum(n + 1 < HUGE for *_, n in combinations)
    done = scene.store.claim(scene.worker(), [TASK], "default", 0, HUGE)
    for name in ("quarantine", "requeue"):
        fenced = fenced_parameters("quarantine", [(job.id, job.lease) for job in done])
        assert len(scene.run(name, fenced if name == "quarantine" else {"ids": [job.id for job in done]})) == len(done)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("lease", "9223372036854775807"), ("lease", "-1"), ("attempt", "-1"), ("crash_count", "-1"), ("max_attempts", "0"),
        ("max_crashes", "0"), ("backoff_base", "'-1 second'"), ("backoff_cap", "'-1 second'"), ("backoff_jitter", "1.5"),
        ("backoff_jitter", "'NaN'"), ("backoff", "'random'"), ("run_at", "'infinity'"), ("run_at", "'-infinity'"), ("time_limit", "'0'"),
        ("args", "'[]'"),
    ],
)  # fmt: skip
def test_values_that_no_statement_could_live_with_are_refused(connection, column, value):
    """A row that would wedge every claim of its queue is refused when it is inserted, with the name of the rule."""
    with pytest.raises(psycopg.errors.CheckViolation):
        Scene(connection).execute(f"INSERT INTO jobrunner.jobs (task, {column}) VALUES ('t', {value})")
