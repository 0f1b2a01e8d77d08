"""An interrupt that comes between a function and the coroutine that it returned: it ends the job before the coroutine begins."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from jobrunner.control import JobStopped
from jobrunner.current import JobContext
from jobrunner.worker.executing import InProcess
from jobrunner.worker.threads import _Child
from jobrunner.worker.voices import ThreadEar


@pytest.fixture
def context():
    return JobContext(id=1, task="send", queue="default", attempt=1, max_attempts=1, lease=1)


@pytest.fixture
def began():
    """What the coroutine notes when it begins."""
    return []


@pytest.fixture
def body(context, began):
    """A function that gives a coroutine; the interrupt comes just before it does."""

    async def coroutine() -> None:
        began.append(True)

    def function() -> Any:
        given = coroutine()
        context.owed = JobStopped("cancelled")
        return given

    return function


def test_in_a_process(context, began, body):
    """It is raised where the coroutine would have begun, which is closed: Python warns of nothing."""
    ear: Any = SimpleNamespace(coroutine=None, pending=None)
    with asyncio.Runner() as runner, pytest.raises(JobStopped):
        InProcess(runner, ear).call(context)(SimpleNamespace(fn=body))
    assert began == []
    assert not context.interruptible
    assert context.owed is None


def test_in_a_thread(context, began, body):
    """The same where the coroutine is a task of its own, so that it can be cancelled from another thread."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child: Any = SimpleNamespace(ear=ThreadEar(ours))
        with pytest.raises(JobStopped):
            asyncio.run(_Child._await(child, context, body()))
        assert not child.ear.coroutines
        assert not child.ear.pending
    assert began == []
    assert not context.interruptible
    assert context.owed is None
