"""What the kernel does with a worker's control groups: limits hold for a group and no other, are counted, and can be lifted.

Runs on whatever version of control groups the machine has; where they cannot be used at all it is deselected.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobrunner.worker import cgroupfs, cgroups, procfs
from tests.support.trees import runs, tree
from tests.support.waiting import wait_until

pytestmark = pytest.mark.needs("cgroups")

MB = 1 << 20
SLACK = 8 * MB  # what a forked interpreter touches by itself, and what the kernel charges ahead


@pytest.fixture(scope="module")
def groups():
    return cgroups.detect(print)


@pytest.fixture
def make(groups):
    """Makes groups that are emptied and removed after the test."""
    made = []

    def make(name="one"):
        made.append(groups.group(name))
        assert made[-1].set_limits(None, None)
        return made[-1]

    yield make
    for group in made:
        group.kill()
        wait_until(group.remove, timeout=10, what="an empty group")


@pytest.fixture
def group(make):
    return make()


def on_word(inside, *bodies):
    """Run one body after the other, each when the test says so, and say what came of it."""
    for body in bodies:
        inside.wait_for_word()
        inside.say(body())


def told(root, group=None):
    """Let a process go on and hear what came of it."""
    if group is not None:
        assert group.add(root.pid)
    root.go_on()
    return root.hear()


def test_memory_limit_kills_in_the_group_only(make):
    """A process that allocates above the limit of its group is killed and counted there; its neighbour's group is none the wiser."""
    small, other = make("small"), make("other")
    assert small.set_limits(50 * MB, None)

    def allocate(inside):
        on_word(inside, lambda: len(b"x" * (200 * MB)))

    with tree(allocate) as greedy, tree(allocate) as neighbour:
        assert small.add(greedy.pid)
        greedy.go_on()
        assert greedy.wait() == -signal.SIGKILL
        assert told(neighbour, other) == 200 * MB
    assert small.oom_kills() >= 1  # v2 kills the victim first, and once more with its group
    assert other.oom_kills() == 0


def test_memory_limit_covers_all_processes_of_the_group(group):
    """Two processes that are each below the limit are above it together."""
    group.set_limits(120 * MB, None)

    def body(inside):
        inside.wait_for_word()
        for _ in range(2):
            inside.fork(lambda: (inside.__dict__.update(kept=b"x" * (80 * MB)), inside.say("has it")))

    with tree(body) as root:
        group.add(root.pid)
        root.go_on()
        wait_until(lambda: group.oom_kills() >= 1, timeout=20, what="the kernel to kill somebody")


def test_limits_are_lifted(group):
    """With None a group has no limit any more."""
    assert group.set_limits(50 * MB, 3)
    assert group.set_limits(None, None)
    with tree(lambda inside: on_word(inside, lambda: len(b"x" * (200 * MB)), lambda: bool(inside.fork(lambda: None)))) as root:
        assert told(root, group) == 200 * MB
        assert all([told(root)])
    assert group.oom_kills() == 0


def test_raised_and_lowered(group):
    """A limit can go up and down again while it stands."""
    for size in (50 * MB, 300 * MB, 60 * MB):
        assert group.set_limits(size, None)
        [own] = [path for path in group._memory.iterdir() if path.name in {"memory.limit_in_bytes", "memory.max"}]
        assert cgroupfs.number(own) == size


def test_a_limit_below_what_is_in_use_is_refused(group):
    """A group that holds more already does not get the limit, nobody is killed, and no limit stands afterwards."""
    group.set_limits(300 * MB, 100)

    def body(inside):
        on_word(inside, lambda: inside.__dict__.update(kept=b"x" * (80 * MB)), lambda: len(b"x" * (400 * MB)))

    with tree(body) as root:
        told(root, group)
        assert not group.set_limits(20 * MB, 100)
        assert runs(root.pid)
        assert told(root) == 400 * MB
    assert group.oom_kills() == 0


def test_page_cache_is_no_reason_to_refuse(group):
    """Memory that holds only a file that was read can be had back: the limit is taken."""
    file = Path("/var/tmp") / f"jobrunner-test-{os.getpid()}"  # on a disk: in memory it would not be cache
    try:
        with tree(lambda inside: on_word(inside, lambda: write_and_read(file, 60 * MB))) as root:
            told(root, group)
            assert group.set_limits(20 * MB, None)
            assert runs(root.pid)
    finally:
        file.unlink(missing_ok=True)


def write_and_read(file, size):
    with file.open("wb") as opened:
        for _ in range(size // MB):
            opened.write(b"x" * MB)
        opened.flush()
        os.fsync(opened.fileno())
    return len(file.read_bytes())


def test_process_limit(group):
    """At the limit fork fails with EAGAIN and is counted; threads count like processes; who is there goes on."""
    assert group.set_limits(None, 3)

    def fork(inside):
        try:
            return inside.fork(lambda: None) > 0
        except OSError as error:
            return error.errno

    def body(inside):
        on_word(inside, lambda: inside.in_thread(lambda: None), lambda: fork(inside), lambda: fork(inside))

    with tree(body) as root:
        told(root, group)
        assert group.process_refusals() == 0
        assert told(root) is True
        assert told(root) == errno.EAGAIN
        assert group.process_refusals() == 1
        assert set(group.processes()) == {root.pid, *procfs.descendants(root.pid)}


def test_a_fork_bomb_is_bounded_and_killed(group):
    """A process that doubles itself stops at the limit, and nobody of it survives the kill."""
    assert group.set_limits(None, 60)
    tokens, tap = os.pipe()
    os.write(tap, b"x" * 600)  # the test's own bound
    os.close(tap)

    def bomb():
        while os.read(tokens, 1):
            try:
                os.fork()
            except OSError:
                os.sched_yield()

    with tree(lambda inside: on_word(inside, bomb)) as root:
        os.close(tokens)
        group.add(root.pid)
        root.go_on()
        wait_until(lambda: group.process_refusals() >= 1, timeout=20, what="the limit to be reached")
        pids = group.processes()
        assert len(pids) <= 60
        assert group.kill() >= 1
        wait_until(lambda: group.processes() == [], timeout=10, what="an empty group")
        assert not any(map(runs, pids))
        assert root.wait() == -signal.SIGKILL
    assert group.remove()


def test_the_group_holds_daemons(group):
    """What a member forks is born in the group, also when it leaves session and parent behind, and dies with it."""

    def body(inside):
        inside.wait_for_word()
        inside.daemon()
        inside.fork(lambda: inside.say(os.getpid()))

    with tree(body) as root:
        group.add(root.pid)
        root.go_on()
        pids = {root.pid, root.hear(), root.hear()}
        assert set(group.processes()) == pids
        assert group.kill() == 3
        assert root.wait() == -signal.SIGKILL
        wait_until(lambda: not any(map(runs, pids)), timeout=10, what="everybody to be dead")


def test_peak(group):
    """The peak is the most since the last reset; where the kernel cannot reset it, there is none."""
    with tree(lambda inside: on_word(inside, lambda: len(b"x" * (80 * MB)), lambda: len(b"x" * (30 * MB)))) as root:
        group.add(root.pid)
        resettable = group.reset_peak()
        told(root)
        first, usage = group.peak_bytes(), group.usage_bytes()
        group.reset_peak()
        told(root)
        second = group.peak_bytes()
    assert usage < 80 * MB
    if resettable:
        assert 80 * MB <= first < 80 * MB + SLACK
        assert 30 * MB <= second < 30 * MB + SLACK
    else:
        assert (first, second) == (None, None)


def test_a_process_can_add_itself(group):
    """0 is the calling process."""
    with tree(lambda inside: inside.say(group.add(0))) as root:
        assert root.hear()
        assert group.processes() == [root.pid]


def test_nobody_there(group):
    """A pid that nobody has cannot be added; an empty group has nobody to kill."""
    with tree(lambda _: os._exit(0)) as root:
        pid = root.pid
        root.wait()
    assert not group.add(pid)
    assert group.processes() == []
    assert group.kill() == 0


def test_a_group_that_is_gone(groups):
    """Whoever asks a group that was removed gets an answer, not an exception; removing it again is no error."""
    group = groups.group("gone")
    assert group.remove()
    assert group.remove()
    assert not group.set_limits(50 * MB, 10)
    assert not group.add(os.getpid())
    assert group.usage_bytes() is None
    assert group.peak_bytes() is None
    assert not group.reset_peak()
    assert (group.oom_kills(), group.process_refusals(), group.processes(), group.kill()) == (0, 0, [], 0)


def test_a_populated_group_is_not_removed(group):
    """A group with processes stays until they are gone."""
    with tree(lambda inside: inside.say("there")) as root:
        root.hear()
        group.add(root.pid)
        assert not group.remove()
        group.kill()
        root.wait()
    wait_until(group.remove, timeout=10, what="the group to be gone")


def test_names(groups, make):
    """A group is named after the worker's pid, and is found again by the same name."""
    group = make("slot-3")
    assert group._memory == groups.memory / f"jobrunner-{os.getpid()}-slot-3"
    with tree(lambda inside: inside.say(group.add(0))) as root:
        root.hear()
        assert make("slot-3").processes() == [root.pid]


def test_groups_of_dead_workers_are_removed(groups):
    """What a worker that is gone has left is removed by the next one, as far as it is empty; the groups of living ones stay."""
    program = "from jobrunner.worker import cgroups; g = cgroups.detect(print).group('left'); print(g._memory)"
    left = Path(subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()[-1])
    mine = groups.group("mine")
    assert left.exists()
    assert cgroups.detect(print) is not None
    assert not left.exists()
    assert mine._memory.exists()
    assert mine.remove()


def test_nothing_is_left_of_the_probe(groups):
    """Finding out leaves nothing behind."""
    threads = threading.active_count()
    assert cgroups.detect(print) is not None
    assert threading.active_count() == threads
    assert not list(groups.memory.glob(f"jobrunner-{os.getpid()}-*"))
    assert groups.pids is None or not list(groups.pids.glob(f"jobrunner-{os.getpid()}-*"))


@pytest.mark.needs("root")
def test_without_the_right_to(groups):
    """A user to whom nothing is delegated has no groups, and is told why."""

    def body(inside):
        os.setuid(65534)
        reasons: list[str] = []
        inside.say([cgroups.detect(reasons.append) is None, reasons])

    with tree(body) as root:
        none, reasons = root.hear()
    assert none
    assert any("denied" in reason or "delegated" in reason for reason in reasons)


def test_switched_off(monkeypatch):
    """JOBRUNNER_CGROUPS=off means none, and says so."""
    monkeypatch.setenv("JOBRUNNER_CGROUPS", "off")
    reasons: list[str] = []
    assert cgroups.detect(reasons.append) is None
    assert reasons == ["JOBRUNNER_CGROUPS is off"]
