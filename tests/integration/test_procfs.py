"""Process trees are measured as a whole, whatever their processes do meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import signal
import threading
import time
from pathlib import Path

import pytest

from jobrunner.worker import limits, procfs
from tests.support.trees import runs, state, tree
from tests.support.waiting import wait_until

pytestmark = pytest.mark.needs("linux")

MB = 1 << 20
EXIT_THREAD = {"x86_64": 60, "aarch64": 93}  # the number of exit(2), which ends the calling thread only


@pytest.fixture(params=[True, False], ids=["children", "scan"])
def every_kernel(request, monkeypatch):
    """With the kernel's lists of children, and without them."""
    monkeypatch.setattr(procfs, "_kernel_lists_children", lambda: request.param)


def measured(pid: int) -> procfs.Usage:
    """The usage of a tree that is there."""
    usage = procfs.usage(pid)
    assert usage is not None
    return usage


def proportional(pid: int) -> int:
    """The proportional memory of a tree that is there."""
    size = procfs.proportional_bytes(pid)
    assert size is not None
    return size


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_one_process(every_kernel):
    """A single process is itself: its resident memory, its CPU time, one process."""

    def body(inside):
        burn(0.2)
        inside.kept = b"x" * (30 * MB)
        inside.say([limits.resident_bytes(), time.process_time() * 1000])

    with tree(body) as root:
        resident, cpu_ms = root.hear()
        usage = measured(root.pid)
        assert usage.process_count == 1
        assert abs(usage.rss_bytes - resident) < 2 * MB
        assert abs(usage.cpu_ms - cpu_ms) < 100
        assert cpu_ms >= 200
        assert procfs.descendants(root.pid) == []


def test_whoever_forked(every_kernel):
    """Descendants are found whether the main thread or another forked them, and daemons stay in the tree below a subreaper."""

    def body(inside):
        inside.say(inside.fork(lambda: inside.say(inside.fork(lambda: None))))
        inside.in_thread(lambda: inside.say(inside.fork(lambda: None)))
        inside.daemon()

    with tree(body) as root:
        pids = {root.hear() for _ in range(4)}
        assert wait_until(lambda: set(procfs.descendants(root.pid)) == pids, timeout=10, what="four descendants")
        assert measured(root.pid).process_count == 5


def test_parents_come_first(every_kernel):
    """Descendants are listed parents before children."""
    with tree(lambda inside: inside.fork(lambda: inside.fork(lambda: inside.say([os.getppid(), os.getpid()])))) as root:
        pids = root.hear()
        assert procfs.descendants(root.pid) == pids


def test_children_are_the_next_generation(every_kernel):
    """A process's children are those that it is the parent of, whichever thread forked them, without their own."""

    def body(inside):
        inside.say(inside.fork(lambda: inside.fork(lambda: inside.say("grandchild"))))
        inside.in_thread(lambda: inside.say(inside.fork(lambda: None)))

    with tree(body) as root:
        said = {root.hear() for _ in range(3)}
        assert set(procfs.children(root.pid)) == said - {"grandchild"}
        assert len(procfs.descendants(root.pid)) == 3


def test_zombies_count_once():
    """A zombie is a process without memory; its CPU time is the tree's before its parent waits for it and after, once."""

    def body(inside):
        pid = os.fork()
        if pid == 0:
            burn(0.3)
            os._exit(0)
        inside.say(pid)
        inside.wait_for_word()
        os.waitpid(pid, 0)
        inside.say("reaped")

    with tree(body) as root:
        zombie = root.hear()
        alone = measured(root.pid).rss_bytes
        wait_until(lambda: state(zombie) == "Z", timeout=20, what="the child to be dead")
        before = measured(root.pid)
        assert before.process_count == 2
        assert before.rss_bytes <= alone
        assert measured(zombie).rss_bytes == 0
        assert measured(zombie).cpu_ms >= 290
        assert measured(zombie).process_count == 1
        root.go_on()
        root.hear()
        after = measured(root.pid)
        assert after.process_count == 1
        assert 290 <= before.cpu_ms <= after.cpu_ms <= before.cpu_ms + 60


@pytest.mark.parametrize("name", [b"a b", b") R 1 (x", b"(((", b")) Z 0 0 0", b"\n) \xff"])
def test_odd_names(every_kernel, name):
    """A process may call itself anything."""

    def body(inside):
        Path("/proc/self/comm").write_bytes(name)
        inside.say(inside.fork(lambda: None))

    with tree(body) as root:
        child = root.hear()
        assert procfs.descendants(root.pid) == [child]
        usage = measured(root.pid)
        assert usage.process_count == 2
        # Both are forks of this process, which may have grown to any size.
        assert 2 * MB < usage.rss_bytes < 2 * (limits.resident_bytes() or 0) + 100 * MB


def test_nobody_there():
    """A pid that nobody has is None, no descendants, nobody killed."""
    with tree(lambda _: os._exit(0)) as root:
        pid = root.pid
        root.wait()
    assert procfs.usage(pid) is None
    assert procfs.proportional_bytes(pid) is None
    assert procfs.descendants(pid) == []
    assert procfs.children(pid) == []
    assert procfs.kill_tree(pid) == 0


def test_without_proc(monkeypatch):
    """Where there is no /proc, nothing is known and nothing raises."""
    monkeypatch.setattr(procfs, "_read", lambda _: b"")
    assert procfs.usage(os.getpid()) is None
    assert procfs.proportional_bytes(os.getpid()) is None
    assert procfs.descendants(os.getpid()) == []
    assert procfs.kill_tree(os.getpid()) == 0


def test_sampling_a_tree_that_comes_and_goes(every_kernel):
    """Processes that vanish while they are looked at are left out: nothing raises, nobody and no CPU time is counted twice."""

    def work():
        burn(0.003)
        if os.fork():
            os.wait()
        os._exit(0)

    def body(inside):
        inside.say("begun")
        for _ in range(40):
            for _ in range(2):
                if not os.fork():
                    work()
            os.wait()
            os.wait()
        inside.say("done")

    with tree(body) as root:
        root.hear()
        samples = []
        while not root.has_spoken():
            samples.append(measured(root.pid))
            assert proportional(root.pid) > 0
            pids = procfs.descendants(root.pid)
            assert len(set(pids)) == len(pids)
        root.hear()
        total = measured(root.pid)
        assert total.process_count == 1
        assert total.cpu_ms >= 240
        assert max(sample.process_count for sample in samples) > 1
        assert max(sample.cpu_ms for sample in samples) <= total.cpu_ms
        assert len(samples) > 10


@pytest.mark.parametrize("how", ["main thread", "other thread"])
def test_a_program_that_is_being_started_has_no_memory_of_its_own(tmp_path, how):
    """Between vfork and exec a child runs in its parent's memory, for as long as the file takes: it is counted once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def spawn():
        # the new process opens the pipe before it executes, and waits there
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 5, str(fifo), os.O_RDONLY, 0)])

    def body(inside):
        inside.kept = b"x" * (100 * MB)
        inside.say("ready")
        inside.wait_for_word()
        inside.in_thread(spawn) if how == "other thread" else spawn()

    with contextlib.ExitStack() as stack:
        root = stack.enter_context(tree(body))
        root.hear()
        before = measured(root.pid).rss_bytes
        proportion = proportional(root.pid)
        root.go_on()
        wait_until(lambda: len(procfs.descendants(root.pid)) == 1, timeout=10, what="the new process")
        stack.callback(lambda: os.close(os.open(fifo, os.O_RDWR)))  # lets it go on
        [child] = procfs.descendants(root.pid)
        wait_until(lambda: state(child) == "S", timeout=10, what="the new process to wait in open")
        usage = measured(root.pid)
        assert usage.process_count == 2
        assert abs(usage.rss_bytes - before) < 5 * MB
        assert abs(proportional(root.pid) - proportion) < 5 * MB


def test_shared_pages():
    """Resident sets count what forked processes share once for each; proportional memory counts it once."""

    def body(inside):
        inside.kept = b"x" * (60 * MB)
        for _ in range(3):
            inside.fork(lambda: inside.say("there"))

    with tree(body) as root:
        for _ in range(3):
            root.hear()
        once = proportional(root.pid)
        assert once >= 60 * MB
        assert measured(root.pid).rss_bytes - once > 170 * MB


@pytest.mark.needs("root")
def test_proportional_memory_that_may_not_be_read():
    """Of another user's process the resident set stands in."""
    with tree(lambda inside: inside.say("there")) as root:
        root.hear()

        def ask(inside):
            os.setuid(65534)
            inside.say([proportional(root.pid), measured(root.pid).rss_bytes, procfs.kill_tree(root.pid)])

        with tree(ask) as stranger:
            proportion, resident, killed = stranger.hear()
        assert proportion == resident
        assert killed == 0
        assert runs(root.pid)


def test_a_main_thread_that_has_ended():
    """A process whose main thread is gone looks like a zombie; its memory counts all the same, and it can be killed."""

    def body(inside):
        inside.in_thread(lambda: (inside.__dict__.update(kept=b"x" * (50 * MB)), inside.say(os.getpid())))
        inside.wait_for_word()
        ctypes.CDLL(None).syscall(EXIT_THREAD[platform.machine()], 0)

    with tree(body) as root:
        root.hear()
        root.go_on()
        wait_until(lambda: state(root.pid) == "Z", timeout=10, what="the main thread to be gone")
        assert measured(root.pid).rss_bytes > 50 * MB
        assert proportional(root.pid) > 50 * MB
        assert procfs.kill_tree(root.pid) == 1
        assert root.wait() == -signal.SIGKILL


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_left_open():
    """Measuring and killing leave no descriptor behind."""

    def look(inside):  # in a process without the threads and the garbage of other tests, which close what they had opened at any moment
        gc.disable()
        before, threads = descriptors(), threading.active_count()
        with tree(lambda below: below.say(below.fork(lambda: None))) as root:
            root.hear()
            meanwhile = descriptors()
            measured(root.pid)
            proportional(root.pid)
            procfs.kill_tree(root.pid)
            left = descriptors() - meanwhile
        inside.say([left, descriptors() - before, threading.active_count() - threads])

    with tree(look) as process:
        assert process.hear() == [0, 0, 0]
