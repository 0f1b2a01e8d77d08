"""What running jobs say: progress, checkpoints and log lines arrive, in bounds, at the right job, whatever the job does meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from jobrunner import JobRunner, migrate
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos

APP = str(Path(__file__).parents[1] / "support" / "talking_app.py")
LINES = "SELECT level, logger, message FROM jobrunner.job_logs ORDER BY job_id, lease, line"


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def gate(tmp_path):
    """A file whose existence lets tasks go on."""
    return tmp_path / "gate"


def begun(ledger, event="begin", number=1):
    wait_until(lambda: ledger.count(event).total() >= number, timeout=30, what=f"{number} × {event}")


def drained(dsn, ledger, *options):
    with workers(dsn, ledger.path, "--drain", *(options or ("-c", "1")), app=APP) as [worker]:
        assert worker.wait() == 0
        return worker.text()


@pytest.mark.parametrize("end", ["error", "kill"])
def test_a_checkpoint_survives_the_end_of_an_attempt(dsn, ledger, end):
    """After an exception, or kill -9 of the child just behind the call, the next attempt goes on from the last checkpoint."""
    insert(dsn, "count", 1, f"jsonb_build_object('upto', 10, 'end', '{end}')", max_attempts=2, backoff_base="0s", backoff="constant")
    drained(dsn, ledger)
    assert [int(number) for event, number, *_ in ledger.lines() if event == "begin"] == [0, 5]
    assert rows(dsn, "SELECT result, checkpoint FROM jobrunner.job_history") == [(5, None)]


def test_a_checkpoint_survives_a_deploy(dsn, ledger, gate):
    """SIGTERM: the task is told at once and leaves, no attempt is used up, the next worker goes on from the checkpoint."""
    insert(dsn, "count", 1, f"jsonb_build_object('upto', 10, 'gate', '{gate}')", max_attempts=1)
    with workers(dsn, ledger.path, "-c", "1", app=APP) as [worker]:
        begun(ledger, "gate")
        assert worker.stop(timeout=10) == 0, "it waited for the grace"
    assert rows(dsn, "SELECT state, attempt, crash_count, checkpoint FROM jobrunner.jobs") == [("queued", 0, 0, 5)]
    assert rows(dsn, "SELECT outcome, exit_cause FROM jobrunner.v_attempts") == [("released", "deploy")]
    gate.touch()
    drained(dsn, ledger)
    assert rows(dsn, "SELECT result, attempt FROM jobrunner.job_history") == [(5, 1)]


def test_a_checkpoint_survives_jobs_retry(dsn, ledger):
    """A job that failed for good and is run again by hand goes on from its checkpoint."""
    insert(dsn, "count", 1, "jsonb_build_object('upto', 10, 'end', 'error')", max_attempts=1)
    drained(dsn, ledger)
    jobs = JobRunner(dsn=dsn)
    [(job_id,)] = rows(dsn, "SELECT id FROM jobrunner.v_jobs WHERE state = 'failed'")
    assert isinstance(job_id, int)
    jobs.job(job_id).retry()
    jobs.close()
    drained(dsn, ledger)
    assert rows(dsn, "SELECT state, result FROM jobrunner.v_jobs") == [("succeeded", 5)]


def test_progress_in_a_loop(fresh_dsn, ledger, gate):
    """100,000 calls of progress neither flood the worker nor the database; the last one arrives while the job goes on silently."""
    insert(fresh_dsn, "flood", 1, f"jsonb_build_object('count', 100000, 'gate', '{gate}')")
    changed = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE schemaname = 'jobrunner' AND relname = 'jobs'"
    with workers(fresh_dsn, ledger.path, "-c", "1", app=APP) as [worker]:
        begun(ledger, "flooded")
        last = [(0.99999, "row 99999")]
        wait_until(
            lambda: rows(fresh_dsn, "SELECT progress, progress_text FROM jobrunner.v_jobs") == last, timeout=20, what="the last to arrive"
        )
        gate.touch()
        wait_for_states(fresh_dsn, 20, succeeded=1)
        assert worker.stop() == 0
    assert rows(fresh_dsn, changed)[0][0] < 30  # type: ignore[operator]


def test_lines_are_there_while_the_job_runs(dsn, ledger, gate):
    """Records of logging and a traceback are in job_logs within about a second; debug records only of the job's own logger."""
    insert(dsn, "talk", 1, f"jsonb_build_object('gate', '{gate}')")
    with workers(dsn, ledger.path, "-c", "1", app=APP):
        begun(ledger, "talked")
        wait_until(lambda: len(rows(dsn, LINES)) == 4, timeout=20, what="the lines to be there")
        assert states(dsn) == {"running": 1}
        gate.touch()
        wait_for_states(dsn, 20, succeeded=1)
    found = rows(dsn, LINES)
    assert found[:3] == [
        (20, "shop.orders", "sold 3 apples"),
        (30, "shop.orders", "few left"),
        (10, "jobrunner.job", "a detail"),
    ]
    level, _, message = found[3]
    assert level == 40
    assert str(message).startswith("could not sell pears\nTraceback")
    assert str(message).endswith("ValueError: invalid literal for int() with base 10: 'no pears'")


def test_levels_and_an_application_with_logging_of_its_own(dsn, ledger, gate):
    """`log_level` of the task decides what is kept; an application that has set up logging keeps its level and its format."""
    gate.touch()
    insert(dsn, "terse", 1, "'{}'")
    insert(dsn, "silent", 1, "'{}'")
    with workers(dsn, ledger.path, "-c", "1", "--drain", app=APP) as [worker]:
        worker.wait()
        assert "kept" in worker.text()
        assert "own:" not in worker.text()
    assert [message for _, _, message in rows(dsn, LINES)] == ["kept", "kept as well"]
    insert(dsn, "talk", 1, f"jsonb_build_object('gate', '{gate}')")
    with workers(dsn, ledger.path, "-c", "1", "--drain", app=APP, environment={"JOBRUNNER_CHAOS_OWN_LOGGING": "1"}) as [worker]:
        worker.wait()
        assert "own: could not sell pears" in worker.text()
        assert "own: few left" not in worker.text()
    own = [message for _, _, message in rows(dsn, LINES)][2:]
    assert [str(message).splitlines()[0] for message in own] == ["a detail", "could not sell pears"]


@pytest.mark.parametrize(
    ("task", "options"), [("interleave", ("--threads", "2")), ("interleave", ("-c", "2")), ("interleave_async", ("--async-slots", "2"))],
    ids=["threads", "processes", "coroutines"],
)  # fmt: skip
def test_lines_belong_to_their_job(dsn, ledger, task, options):
    """Two jobs side by side, with threads of their own that have a copied context: each line is at the job that logged it."""
    insert(dsn, task, 2, "jsonb_build_object('name', 'job ' || n, 'count', 100)")
    drained(dsn, ledger, *options)
    ids = [row[0] for row in rows(dsn, "SELECT id FROM jobrunner.v_jobs ORDER BY id")]
    each = 100 if task == "interleave_async" else 200
    found = rows(dsn, "SELECT job_id, substr(message, 1, 5), count(*) FROM jobrunner.job_logs GROUP BY 1, 2 ORDER BY 1")
    assert found == [(ids[0], "job 1", each), (ids[1], "job 2", each)]


def test_hostile_records(dsn, ledger):
    """Records that cannot be formatted, NUL, surrogates, 10 MB and strange levels are kept as well as can be, and hurt nobody."""
    insert(dsn, "hostile", 1, "'{}'")
    insert(dsn, "terse", 1, "'{}'")
    drained(dsn, ledger)
    assert states(dsn) == {"succeeded": 2}
    found = [(level, str(logger), str(message)) for level, logger, message in rows(dsn, LINES)]
    assert [message.count("could not be formatted") for _, _, message in found[:3]] == [1, 1, 1]
    assert found[3][2] == "a nul \\x00 and a surrogate \\ud800"
    assert "characters cut" in found[4][2]
    assert len(found[4][2]) < 20_000
    assert len(found[5][1]) == 200
    assert found[6][0] == 50
    assert [message for _, _, message in found[7:]] == ["kept", "kept as well"]


@pytest.mark.parametrize(("count", "size", "kept"), [(12_000, 1, 10_000), (2_000, 5_000, 200)], ids=["lines", "bytes"])
def test_the_log_of_an_attempt_is_bounded(dsn, ledger, count, size, kept):
    """After 10,000 lines or 1 MB one line says that the log is full, and nothing follows; the job goes on."""
    insert(dsn, "chatter", 1, f"jsonb_build_object('count', {count}, 'size', {size})")
    drained(dsn, ledger)
    assert states(dsn) == {"succeeded": 1}
    [(lines, last)] = rows(dsn, "SELECT count(*), (array_agg(message ORDER BY line DESC))[1] FROM jobrunner.job_logs")
    assert kept <= int(str(lines)) <= kept + 1
    assert "is full" in str(last)


@pytest.mark.parametrize("how", ["kill", "time_limit"])
def test_last_words_of_a_killed_job(dsn, ledger, how):
    """What a job logged before it was killed, by itself or for its time limit, is there, and so is its progress."""
    limit = {"time_limit": "1s"} if how == "time_limit" else {}
    insert(dsn, "last_words", 1, f"jsonb_build_object('how', '{how}')", max_attempts=1, max_crashes=1, **limit)
    drained(dsn, ledger)
    assert len(rows(dsn, LINES)) == 50
    assert rows(dsn, "SELECT progress, progress_text FROM jobrunner.v_jobs") == [(0.7, "about to die")]


def test_words_of_a_job_that_ends_itself(dsn, ledger):
    """A transactional job ends its own row before the worker has written its words: they are kept all the same, and nobody is killed."""
    insert(dsn, "settle", 50, "'{}'")
    text = drained(dsn, ledger, "-c", "2")
    assert states(dsn) == {"succeeded": 50}
    assert rows(dsn, "SELECT DISTINCT progress, progress_text FROM jobrunner.v_jobs") == [(1.0, "done")]
    assert rows(dsn, "SELECT count(*), count(DISTINCT job_id) FROM jobrunner.job_logs WHERE message = 'settled'") == [(50, 50)]
    assert "superseded" not in text
    assert "another attempt" not in text


def test_signal_handlers_that_raise_amid_a_line(dsn, ledger):
    """A task whose alarm raises and logs while lines are being sent spoils no other line, and not the worker."""
    insert(dsn, "alarmed", 1, "'{}'")
    insert(dsn, "terse", 1, "'{}'")
    drained(dsn, ledger)
    assert rows(dsn, "SELECT task, state, result FROM jobrunner.v_jobs ORDER BY id") == [
        ("alarmed", "succeeded", 200),
        ("terse", "succeeded", None),
    ]
    assert rows(dsn, "SELECT DISTINCT left(message, 4) FROM jobrunner.job_logs WHERE logger = 'shop.orders' AND level = 20 ORDER BY 1") == [
        ("ring",),
        ("zzzz",),
    ]


def test_words_wait_for_a_database_that_is_away(durable_server, ledger, gate):
    """What a job says while PostgreSQL is away arrives when it is back, in order."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    insert(dsn, "count", 1, f"jsonb_build_object('upto', 1000, 'gate', '{gate}')")
    with workers(dsn, ledger.path, "-c", "1", app=APP) as [worker]:
        begun(ledger, "gate")
        durable_server.stop(mode="immediate")
        wait_until(lambda: "database away" in worker.text(), timeout=20, what="the worker to notice")
        gate.touch()
        durable_server.start()
        wait_for_states(dsn, 30, succeeded=1)
        assert worker.stop() == 0
    assert rows(dsn, "SELECT progress, progress_text, result FROM jobrunner.v_jobs") == [(0.999, "number 999", 1000)]


@pytest.mark.parametrize("options", [("-c", "1"), ("--threads", "1")], ids=["process", "thread"])
def test_a_superseded_attempt_is_not_heard(dsn, ledger, gate, options):
    """Progress, checkpoint, lines and children of an attempt whose job is another's are refused, and the attempt is ended."""
    insert(dsn, "superseded", 1, f"jsonb_build_object('gate', '{gate}')")
    with workers(dsn, ledger.path, *options, app=APP) as [worker]:
        begun(ledger)
        rows(dsn, "UPDATE jobrunner.jobs SET lease = lease + 1 RETURNING id")
        gate.touch()
        begun(ledger, "refused")
        wait_until(lambda: "superseded" in worker.text() or "another attempt" in worker.text(), timeout=20, what="the worker to notice")
        worker.signal(signal.SIGTERM)
        worker.wait()
    assert rows(dsn, "SELECT task, lease, progress, progress_text, checkpoint FROM jobrunner.jobs") == [("superseded", 2, None, None, None)]
    assert rows(dsn, LINES) == []
