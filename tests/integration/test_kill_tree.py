"""Process trees end as a whole, whatever their processes do meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from jobrunner.worker import procfs
from tests.support.trees import runs, state, tree
from tests.support.waiting import wait_until

pytestmark = pytest.mark.needs("linux")


@pytest.fixture(params=[True, False], ids=["children", "scan"])
def every_kernel(request, monkeypatch):
    """With the kernel's lists of children, and without them."""
    monkeypatch.setattr(procfs, "_kernel_lists_children", lambda: request.param)


def test_kill_takes_everybody(every_kernel):
    """The root, its child, its grandchild, a thread's child and a daemon are all killed, and counted."""

    def body(inside):
        inside.fork(lambda: inside.fork(lambda: inside.say(os.getpid())))
        inside.in_thread(lambda: inside.say(inside.fork(lambda: None)))
        inside.daemon(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
        inside.say("and nobody else")  # the process between us and the daemon is gone by now

    with tree(body) as root:
        pids = [said for said in (root.hear() for _ in range(4)) if said != "and nobody else"]
        assert procfs.kill_tree(root.pid) == 5
        assert root.wait() == -signal.SIGKILL
        assert wait_until(lambda: not any(map(runs, pids)), timeout=10, what="everybody to be dead")


def test_kill_spares_the_root():
    """With include_root=False everybody else is killed, and the root goes on."""

    def body(inside):
        inside.daemon()
        inside.say(inside.fork(lambda: None))
        inside.wait_for_word()
        inside.say("still here")

    with tree(body) as root:
        pids = [root.hear(), root.hear()]
        assert procfs.kill_tree(root.pid, include_root=False) == 2
        assert wait_until(lambda: not any(map(runs, pids)), timeout=10, what="both to be dead")
        root.go_on()
        assert root.hear() == "still here"


def test_a_process_ends_what_it_left_running():
    """A process may call it for itself: its descendants are gone, it is neither stopped nor killed."""

    def body(inside):
        inside.daemon()
        inside.fork(lambda: None)
        inside.wait_for_word()
        inside.say(procfs.kill_tree(os.getpid(), include_root=False))

    with tree(body) as root:
        daemon = root.hear()
        root.go_on()
        assert root.hear() == 2
        assert wait_until(lambda: not runs(daemon), timeout=10, what="the daemon to be dead")


@pytest.mark.parametrize("kind", ["bomb", "hopper", "hoppers"])
@pytest.mark.parametrize("reaping", [True, False], ids=["reaped", "zombies"])
def test_kill_is_faster_than_forking(kind, reaping):
    """Nobody escapes of a tree that doubles itself, nor of processes that fork and leave before they can be looked at."""
    tokens, tap = os.pipe()
    os.write(tap, b"x" * 400)  # the test's own bound: every fork costs one
    os.close(tap)

    def bomb():
        while os.read(tokens, 1):
            os.fork()

    def hop():
        while os.read(tokens, 1):
            if os.fork():
                os._exit(0)

    def body(inside):
        if reaping:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range({"bomb": 1, "hopper": 1, "hoppers": 6}[kind]):
            inside.fork(bomb if kind == "bomb" else hop)
        inside.say("begun")

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, tokens)
        root = stack.enter_context(tree(body))
        root.hear()
        wait_until(lambda: len(procfs.descendants(root.pid)) >= 2, timeout=10, what="the forking to begin")
        session = os.getsid(root.pid)
        assert procfs.kill_tree(root.pid) >= 1
        assert root.wait() == -signal.SIGKILL
        wait_until(lambda: not of_session(session), timeout=10, what="everybody to be dead")


def test_kill_finds_whoever_is_never_there_when_looked_at(monkeypatch):
    """A process that forks and leaves whenever it is about to be looked at is followed until it stands still."""

    def hop(inside):
        while True:
            inside.say(os.getpid())
            inside.wait_for_word()
            if os.fork():
                os._exit(0)

    def body(inside):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        inside.fork(lambda: hop(inside))

    with tree(body) as root:
        pids = [root.hear()]
        look = procfs._look

        def late(pid, forker):
            if pid == pids[-1] and len(pids) < 8:
                root.go_on()
                pids.append(root.hear())
                wait_until(lambda: state(pid) == "", timeout=10, what="it to be gone")
            return look(pid, forker)

        monkeypatch.setattr(procfs, "_look", late)
        assert procfs.kill_tree(root.pid) == 2
        assert len(pids) == 8
        assert root.wait() == -signal.SIGKILL
        wait_until(lambda: not runs(pids[-1]), timeout=10, what="it to be dead")


def test_everybody_is_stopped_before_anybody_is_killed(monkeypatch):
    """Nobody runs any more when the first is killed, so that no death can set something off; the root is the last to be killed."""

    def body(inside):
        inside.fork(lambda: inside.fork(lambda: (inside.say(os.getpid()), inside.spin())))
        inside.in_thread(lambda: inside.say(inside.fork(inside.spin)))
        inside.daemon(inside.spin)
        inside.in_thread(inside.spin)

    with tree(body) as root:
        for _ in range(3):
            root.hear()
        wait_until(lambda: len(procfs.descendants(root.pid)) == 4, timeout=10, what="the daemon's parent to be gone")
        everybody = {root.pid, *procfs.descendants(root.pid)}
        killed: list[int] = []
        send = procfs.signal_checked

        def watched(pid, number, still):
            if number == signal.SIGKILL:
                assert {state(other) for other in everybody - set(killed)} == {"T"}
                killed.append(pid)
            return send(pid, number, still)

        monkeypatch.setattr(procfs, "signal_checked", watched)
        assert procfs.kill_tree(root.pid) == 5
        assert set(killed) == everybody
        assert killed[-1] == root.pid
        assert root.wait() == -signal.SIGKILL


def of_session(session):
    """Who lives in a session, wherever it hangs in the tree of processes."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if runs(pid) and session_of(pid) == session]


def session_of(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_a_stopped_process_is_killed():
    """A process that was stopped before ends as well."""
    with tree(lambda inside: inside.say(inside.fork(lambda: os.kill(os.getpid(), signal.SIGSTOP)))) as root:
        child = root.hear()
        wait_until(lambda: state(child) == "T", timeout=10, what="the child to be stopped")
        assert procfs.kill_tree(root.pid) == 2
        assert root.wait() == -signal.SIGKILL
        assert wait_until(lambda: not runs(child), timeout=10, what="the child to be dead")


@pytest.mark.parametrize("pinning", [True, False], ids=["pidfd", "without pidfd"])
def test_a_signal_reaches_only_who_is_meant(monkeypatch, pinning):
    """A process that is not the one that was found is left alone; one that is gets the signal; nobody is no error."""
    if not pinning:
        monkeypatch.delattr(os, "pidfd_open")
    with tree(lambda inside: inside.say("there")) as root:
        root.hear()
        assert not procfs.signal_checked(root.pid, signal.SIGKILL, lambda: False)
        assert runs(root.pid)
        assert procfs.signal_checked(root.pid, signal.SIGKILL, lambda: True)
        pid = root.pid
        assert root.wait() == -signal.SIGKILL
    assert not procfs.signal_checked(pid, signal.SIGKILL, lambda: True)
