"""What the enforcer makes of samples, without processes: limits that one look is no proof for, and one that is seen twice."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobrunner.jobs import ClaimedJob, Ending, Unsuccessful
from jobrunner.worker import channels
from jobrunner.worker.cgroups import GroupV1
from jobrunner.worker.children import PROCESS, Child, Run
from jobrunner.worker.endings import reported
from jobrunner.worker.enforcer import Enforcer
from jobrunner.worker.procfs import Usage
from jobrunner.worker.wire import OK

LIMIT = 3


@pytest.fixture
def child():
    fields, _, close = channels.connect()
    made = Child(number=1, kind=PROCESS, capacity=1, **fields)
    yield made
    made.close()
    for close_end in close:
        close_end()


def _run(limits):
    return Run(ClaimedJob(1, 1, 1, 1, "task", "default", "{}", datetime.now(UTC), None, suspect=False), limits)


def _enforcer():
    return Enforcer(lambda *_: None, lambda *_: None, lambda *_: None)


@pytest.mark.parametrize(
    ("samples", "ended"),
    [([4], False), ([4, 3], False), ([4, 3, 4, 3], False), ([4, 4], True), ([3, 9, 3, 4, 5], True), ([3, 3, 3], False)],
)
def test_two_samples_in_a_row_are_proof_of_too_many_processes(child, samples, ended):
    """A look at a tree may see two short-lived processes that followed each other: one sample above the limit ends nobody."""
    run = _run({"processes": LIMIT})
    enforcer = _enforcer()
    for now, count in enumerate(samples):
        enforcer._check_use(child, run, run.limits or {}, 0, Usage(rss_bytes=0, cpu_ms=0, process_count=count), float(now))
    assert (run.kill is not None) is ended
    assert run.kill is None or run.kill.exit_cause == "processes"


@pytest.mark.parametrize("sampled", [False, True])
def test_a_kill_of_the_kernel_counts_when_the_task_returns(child, tmp_path, sampled):
    """A helper of a job was killed for memory: the attempt has failed for it, also when a look at it saw that before its return."""
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    child.group = GroupV1(tmp_path, None)
    run, enforcer = _run({"memory": LIMIT}), _enforcer()
    if sampled:
        enforcer._check_use(child, run, run.limits or {}, 0, Usage(rss_bytes=0, cpu_ms=0, process_count=1), 0.0)
        assert run.kill is not None
    outcome = reported(run, OK, ["null"], (1, 1, 1), 1.0, enforcer.overrun(child, run, 1.0))
    assert isinstance(outcome, Unsuccessful)
    assert (outcome.ending, outcome.exit_cause, run.peak) == (Ending.RETRY, "memory", LIMIT)
    following = _run({"memory": LIMIT})
    assert enforcer.overrun(child, following, 2.0) is None, "and is not held against the next job of the process"
