"""What jobs print: into whose log it goes, in which order, where it is cut, and that a flood of it holds up nobody."""

from __future__ import annotations

import psycopg
import pytest

from tests.support import limits_tasks
from tests.support.workers import insert, rows, states, wait_for_states, workers

pytestmark = pytest.mark.chaos


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger"


def run(dsn, ledger, *options):
    """Start a worker; see `workers`."""
    return workers(dsn, ledger, *options, app=limits_tasks.__file__)


def log(dsn, job_id, logger):
    """The lines of one logger in a job's log, in order."""
    with psycopg.connect(dsn) as connection:
        query = "SELECT message FROM jobrunner.job_logs WHERE job_id = %s AND logger = %s ORDER BY lease, line"
        return [message for (message,) in connection.execute(query, (job_id, logger)).fetchall()]


def test_output_goes_into_the_log_of_the_job_that_printed(dsn, ledger):
    """With `capture_output` each line of a job is in its own log, in order, by stream, whoever wrote it; also of jobs in a batch."""
    insert(dsn, "say", 20)
    with run(dsn, ledger, "-c", "1", "--drain") as [worker]:
        assert worker.wait() == 0
    ids = [job_id for (job_id,) in rows(dsn, "SELECT id FROM jobrunner.v_jobs WHERE state = 'succeeded' ORDER BY id")]
    assert len(ids) == 20
    for number, job_id in enumerate(ids, 1):
        assert log(dsn, job_id, "stdout") == [f"{number} {what}" for what in ("one", "two", "three", "four", "without an end")]
        assert log(dsn, job_id, "stderr") == [f"{number} error"]
    assert rows(dsn, "SELECT DISTINCT logger, level FROM jobrunner.job_logs ORDER BY 1") == [("stderr", 30), ("stdout", 20)]


@pytest.mark.parametrize("lines", [20, 100_000], ids=["at once", "flood"])
def test_output_is_cut_at_the_limit_and_marked(dsn, ledger, lines):
    """Output ends at its limit to the byte, the log says so in its last line, and the attempt fails even if its task had returned."""
    insert(dsn, "say_much", 1, f"jsonb_build_object('lines', {lines})", output_limit=155, max_attempts=1)
    insert(dsn, "say_much", 1, "jsonb_build_object('lines', 15)", output_limit=155, max_attempts=1)
    with run(dsn, ledger, "-c", "1", "--drain") as [worker]:
        assert worker.wait() == 0
    found = rows(dsn, "SELECT job_id, outcome, error_type, exit_cause FROM jobrunner.v_attempts ORDER BY job_id")
    assert [row[1:] for row in found] == [
        ("failed", "jobrunner.errors.OutputLimitExceeded", "output"),
        ("succeeded", None, None),
    ]
    cut, whole = (row[0] for row in found)
    assert log(dsn, cut, "stdout") == [*(f"line {number:04d}" for number in range(15)), "line "]
    assert log(dsn, cut, "jobrunner.job") == ["output cut: it is longer than its output_limit of 155 bytes"]
    assert rows(dsn, "SELECT logger FROM jobrunner.job_logs ORDER BY job_id, line DESC LIMIT 1") == [("jobrunner.job",)]
    assert log(dsn, whole, "stdout") == [f"line {number:04d}" for number in range(15)]
    assert worker.text().count("line 00") == 30
    assert "line 0016" not in worker.text()


def test_output_that_is_only_limited_passes_through(dsn, ledger):
    """With a limit and without capture, output reaches the worker's own stdout whole and in order, and no log."""
    insert(dsn, "say_aside", 1, "jsonb_build_object('lines', 500)", output_limit=100_000)
    with run(dsn, ledger, "-c", "1", "--drain") as [worker]:
        assert worker.wait() == 0
    assert [line for line in worker.text().splitlines() if line.startswith("aside")] == [f"aside {number:03d}" for number in range(500)]
    assert rows(dsn, "SELECT count(*) FROM jobrunner.job_logs") == [(0,)]


def test_a_flood_holds_up_nobody(dsn, ledger):
    """A job that prints as fast as it can and ignores SIGTERM is ended; jobs beside it run meanwhile, and the lease is kept."""
    insert(dsn, "flood", 1, "'{}'::jsonb", output_limit=10_000, max_attempts=1)
    insert(dsn, "where", 200, "'{}'::jsonb", max_attempts=1, max_crashes=1)
    with run(dsn, ledger, "-c", "2") as [worker]:
        wait_for_states(dsn, 20, failed=1, succeeded=200)
        assert worker.stop() == 0
    assert rows(dsn, "SELECT exit_cause, run_ms < 5000 FROM jobrunner.v_attempts WHERE outcome = 'failed'") == [("output", True)]
    assert "lease lost" not in worker.text()
    assert states(dsn) == {"failed": 1, "succeeded": 200}
