"""`jobrunner jobs …`: list, show, wait, retry, cancel."""

from __future__ import annotations

import pytest

from tests.support.seed import seed
from tests.support.waiting import wait_until

JOB_KEYS = {
    "id",
    "task",
    "queue",
    "state",
    "priority",
    "attempt",
    "max_attempts",
    "created_at",
    "run_at",
    "started_at",
    "finished_at",
    "wait_ms",
    "run_ms",
    "worker_id",
    "error_type",
    "error",
    "progress",
    "progress_text",
    "peak_memory",
}
DETAIL_KEYS = JOB_KEYS | {
    "ordering_key",
    "expires_at",
    "error_at",
    "args",
    "result",
    "meta",
    "tags",
    "parent_id",
    "unique_key",
    "crash_count",
    "max_crashes",
    "time_limit_ms",
    "soft_time_limit_ms",
    "cpu_limit_ms",
    "memory_limit",
    "memory_limit_on_retry",
    "output_limit",
    "max_processes",
    "checkpoint",
    "backoff",
    "lease",
    "claimed_at",
    "cancel_requested_at",
    "cpu_ms",
    "worker",
    "waiting_reason",
    "attempts",
    "attempts_left_out",
    "at",
}
ATTEMPT_KEYS = {
    "attempt",
    "lease",
    "outcome",
    "started_at",
    "finished_at",
    "run_ms",
    "cpu_ms",
    "worker_id",
    "worker",
    "error_type",
    "message",
    "traceback",
    "fingerprint",
    "exit_cause",
    "peak_memory",
}


def enqueue(program, *line):
    """The id of a new job."""
    return int(program("-q", "enqueue", *line).out)


@pytest.fixture
def worked(program):
    """Ids of a job that succeeded, one that failed, one that waits, after a worker has drained."""
    ids = {
        "succeeded": enqueue(program, "add", '{"a": 1, "b": 2}'),
        "failed": enqueue(program, "divide", '{"a": 1, "b": 0}'),
        "scheduled": enqueue(program, "add", '{"a": 3, "b": 4}', "--in", "1h"),
    }
    program("work", "default,mail", "--drain")
    return ids


def test_list_shows_live_jobs_first(program, worked):
    """One line for each job in aligned columns; errors stand where arguments would."""
    header, *lines = program("jobs", "list").lines()
    assert header.split() == ["ID", "TASK", "QUEUE", "STATE", "ATTEMPT", "WHEN", "RUN", "ARGS", "/", "ERROR"]
    assert {int(line.split()[0]): line.split()[3] for line in lines} == {number: state for state, number in worked.items()}
    assert lines[0].split()[3] == "scheduled"
    failed = next(line for line in lines if "failed" in line)
    assert failed.endswith("ZeroDivisionError: division by zero")
    assert {line.index(state) for state in worked for line in lines if state in line} == {header.index("STATE")}


def test_list_filters_by_the_language_of_the_dashboard(program, worked):
    """Terms may be several arguments or one; what matches nothing says so on stderr."""
    assert [job["id"] for job in program("jobs", "list", "state:failed", "--json").json["items"]] == [worked["failed"]]
    assert [job["id"] for job in program("jobs", "list", "task:a*", "queue:default", "--json").json["items"]] == [
        worked["scheduled"],
        worked["succeeded"],
    ]
    for terms in (["-state:succeeded,scheduled task:*"], ["-queue:default", "task:d*"], ["task:*", "-task:add"]):
        assert [job["id"] for job in program("jobs", "list", *terms, "--json").json["items"]] == [worked["failed"]]
    said = program("jobs", "list", "queue:none")
    assert (said.out, said.err) == ("", "no job matches\n")


def test_list_refuses_a_filter_that_means_nothing(program):
    """A wrong term is named, with the closest right one: 2."""
    said = program("jobs", "list", "stat:failed", ok=None)
    assert said.code == 2
    assert said.err.startswith("error: filter 'stat:failed': unknown qualifier 'stat'. Did you mean 'state'?\n  qualifiers: state, task")


def test_list_goes_on_where_a_page_ended(program, worked):
    """The cursor that stderr and --json give leads to the rest."""
    first = program("jobs", "list", "--limit", "2", "--json").json
    assert set(first) == {"items", "next", "prev", "at"}
    assert first["prev"] is None
    rest = program("jobs", "list", "--limit", "2", "--cursor", first["next"], "--json").json
    assert rest["next"] is None
    assert {job["id"] for job in first["items"] + rest["items"]} == set(worked.values())
    assert f"there are more: --cursor {first['next']}" in program("jobs", "list", "--limit", "2").err
    said = program("jobs", "list", "--cursor", "nonsense", ok=None)
    assert said.code == 2


def test_json_has_every_key_always(program, worked):
    """The documents have the same keys whatever the job's state; instants are ISO 8601 in UTC."""
    for job in program("jobs", "list", "--json").json["items"]:
        assert set(job) == JOB_KEYS | {"args_excerpt"}
        assert job["created_at"].endswith("Z")
    for number in worked.values():
        found = program("jobs", "show", number, "--json").json
        assert set(found) == DETAIL_KEYS
        assert all(set(attempt) == ATTEMPT_KEYS for attempt in found["attempts"])


def test_json_keeps_every_digit(program, connection):
    """Numbers that a float cannot hold come out as they were put in."""
    args = '{"a": 0.1234567890123456789012345, "b": 123456789012345678901234567890}'
    number = connection.execute("INSERT INTO jobrunner.jobs (task, args) VALUES ('add', %s) RETURNING id", (args,)).fetchone()[0]
    out = program("jobs", "show", number, "--json").out
    assert '"a": 0.1234567890123456789012345' in out
    assert '"b": 123456789012345678901234567890' in out


def test_show_tells_the_whole_story(program, worked):
    """State, facts, timeline, attempts, traceback and arguments of a job that failed."""
    out = program("jobs", "show", worked["failed"]).out
    assert out.startswith(f"job {worked['failed']}  divide  failed\n  queue mail · attempt 1 of 1")
    for part in (
        "timeline",
        "created",
        "attempt 1 began",
        "attempt 1 failed: ZeroDivisionError",
        "attempts",
        "| Traceback",
        "return a / b",
        '"b": 0',
    ):
        assert part in out
    assert "division by zero" in out
    succeeded = program("jobs", "show", worked["succeeded"]).lines()
    assert succeeded[-2:] == ["result", "  3"]


def test_show_tells_limits_progress_and_cost(reader, connection):
    """Limits in words, how far it is as a bar, the checkpoint, and what its attempts used; sizes and times as people write them."""
    ids = seed(connection, 600)
    out = reader("jobs", "show", ids["retrying"]).out
    assert f"  {'▮' * 8}{'▯' * 12} 40%  page 4 of 10\n" in out
    for part in (
        "time limit 1m00s", "soft time limit 50.0s", "cpu limit 40.0s", "memory limit 256.0 MB, ×2 after an attempt that exceeded it",
        "output limit 1.0 MB", "processes at most 4", "checkpoint\n  {", '"after": "globex-0817"', "peak memory 131.0 MB", "memory\n",
    ):  # fmt: skip
        assert part in out
    found = reader("jobs", "show", ids["retrying"], "--json").json
    assert {key: found[key] for key in ("progress", "progress_text", "checkpoint", "cpu_limit_ms", "memory_limit", "memory_limit_on_retry")} == {
        "progress": 0.4, "progress_text": "page 4 of 10", "checkpoint": {"page": 4, "after": "globex-0817"}, "cpu_limit_ms": 40_000,
        "memory_limit": 256_000_000, "memory_limit_on_retry": 2,
    }  # fmt: skip
    assert [(attempt["attempt"], attempt["exit_cause"], attempt["peak_memory"]) for attempt in found["attempts"]] == [
        (2, "exception", None),
        (1, "memory", 131_000_000),
    ]
    (listed,) = reader("jobs", "list", f"id:{ids['succeeded']}", "--json").json["items"]
    assert listed["peak_memory"] > 0
    assert "peak memory " in reader("jobs", "show", ids["succeeded"]).out


def test_show_says_why_a_job_is_not_running(program, worked):
    """Below its state stands the reason, and what to do."""
    lines = program("jobs", "show", worked["scheduled"]).lines()
    assert lines[0].endswith("scheduled")
    assert lines[1].startswith("  is scheduled for ")
    number = enqueue(program, "add", '{"a": 3, "b": 4}')
    assert "no worker is alive" in program("jobs", "show", number).lines()[1]
    assert program("jobs", "show", number, "--json").json["waiting_reason"]["code"] == "no_worker"


def test_wait_prints_states(program, worked):
    """0 when all succeeded, 1 when one did not; the states are data."""
    assert program("jobs", "wait", worked["succeeded"]).out == f"{worked['succeeded']}  succeeded\n"
    said = program("jobs", "wait", worked["succeeded"], worked["failed"], "--json", ok=None)
    assert said.code == 1
    assert said.json == {"jobs": [{"id": worked["succeeded"], "state": "succeeded"}, {"id": worked["failed"], "state": "failed"}]}


def test_wait_sees_the_end(program):
    """A wait that began before the job ran ends when a worker has run it."""
    number = enqueue(program, "add", '{"a": 1, "b": 2}')
    with program.started("jobs", "wait", number) as waiting:
        waiting.wait_for("no worker is alive")
        program("work", "--drain")
        wait_until(lambda: waiting.process.poll() is not None, timeout=30, what="the wait ends")
        assert (waiting.process.returncode, waiting.out) == (0, f"{number}  succeeded\n")


def test_retry_and_cancel_go_on_after_a_refusal(program, worked):
    """Every id is tried; the exit code is that of the first refusal, and --json tells each."""
    said = program("jobs", "retry", worked["failed"], worked["succeeded"], worked["scheduled"], ok=None)
    assert said.code == 7
    assert f"job {worked['failed']} is queued: due now\n" in said.err
    assert f"job {worked['scheduled']} is queued: due now\n" in said.err
    said = program("jobs", "cancel", worked["failed"], 99999, worked["scheduled"], "--json", ok=None)
    assert said.code == 6
    assert [(job["id"], job["done"]) for job in said.json["jobs"]] == [
        (worked["failed"], True),
        (99999, False),
        (worked["scheduled"], True),
    ]
    assert program("jobs", "show", worked["failed"], "--json").json["state"] == "cancelled"


def test_cancel_asks_a_running_job_to_stop(program):
    """A running job is not cancelled behind its worker's back: it is asked, and then stops."""
    started = program.home / "started"
    number = enqueue(program, "hold", f'{{"started": "{started}", "release": "{program.home / "never"}"}}')
    with program.started("work", "--poll", "100ms", "--lease", "3s") as worker:
        wait_until(started.exists, timeout=30, what="the job runs")
        assert f"job {number} is running: asked to stop\n" in program("jobs", "cancel", number).err
        program("jobs", "wait", number, "--timeout", "30s", ok=None)
        assert program("jobs", "show", number, "--json").json["state"] == "cancelled"
        assert worker.stop() == 0


def test_cancel_waits_for_the_end(program):
    """--wait comes back when running jobs are cancelled: 0; at the timeout 5; a job that was faster 1; a timeout alone is refused."""
    started = program.home / "started"
    release = program.home / "release"
    line = ("hold", f'{{"started": "{started}", "release": "{program.home / "never"}"}}')
    number = enqueue(program, *line)
    waiting = enqueue(program, "add", '{"a": 1, "b": 2}', "--in", "1h")
    assert program("jobs", "cancel", number, "--timeout", "1s", ok=None).code == 2
    with program.started("work", "-c", "1", "--poll", "100ms") as worker:
        wait_until(started.exists, timeout=30, what="the job runs")
        said = program("jobs", "cancel", number, "--wait", "--timeout", "1ms", "--json", ok=None)
        assert said.code == 5
        assert said.json == {"jobs": [{"id": number, "done": True, "state": "running"}]}
        assert "is not finished after" in said.err
        started.unlink()
        second = enqueue(program, *line)
        wait_until(started.exists, timeout=30, what="the second job runs, the first having ended")
        said = program("jobs", "cancel", second, waiting, "--wait", "--json")
        assert said.json == {"jobs": [{"id": job, "done": True, "state": "cancelled"} for job in (second, waiting)]}
        assert program("jobs", "show", number, "--json").json["state"] == "cancelled"
        started.unlink()
        faster = enqueue(program, "hold", f'{{"started": "{started}", "release": "{release}"}}')
        wait_until(started.exists, timeout=30, what="the third job runs")
        with program.started("jobs", "cancel", faster, "--wait") as cancelling:
            cancelling.wait_for("asked to stop")
            release.touch()
            assert cancelling.process.wait(30) == 1
            assert f"job {faster} succeeded" in cancelling.err
        assert worker.stop() == 0
