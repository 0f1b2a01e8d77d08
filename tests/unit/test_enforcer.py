"""What the enforcer makes of a sample, without processes: the limits that one look is no proof for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobrunner.jobs import ClaimedJob
from jobrunner.worker import channels
from jobrunner.worker.children import PROCESS, Child, Run
from jobrunner.worker.enforcer import Enforcer
from jobrunner.worker.procfs import Usage

LIMIT = 3


@pytest.fixture
def child():
    fields, _, close = channels.connect()
    made = Child(number=1, kind=PROCESS, capacity=1, **fields)
    yield made
    made.close()
    for close_end in close:
        close_end()


@pytest.mark.parametrize(
    ("samples", "ended"),
    [([4], False), ([4, 3], False), ([4, 3, 4, 3], False), ([4, 4], True), ([3, 9, 3, 4, 5], True), ([3, 3, 3], False)],
)
def test_two_samples_in_a_row_are_proof_of_too_many_processes(child, samples, ended):
    """A look at a tree may see two short-lived processes that followed each other: one sample above the limit ends nobody."""
    job = ClaimedJob(1, 1, 1, 1, "task", "default", "{}", datetime.now(UTC), None, suspect=False)
    run = Run(job, {"processes": LIMIT})
    enforcer = Enforcer(lambda *_: None, lambda *_: None, lambda *_: None)
    for now, count in enumerate(samples):
        enforcer._check_use(child, run, run.limits or {}, 0, Usage(rss_bytes=0, cpu_ms=0, process_count=count), float(now))
    assert (run.kill is not None) is ended
    assert run.kill is None or run.kill.exit_cause == "processes"
