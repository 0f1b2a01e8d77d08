"""What is written where on control groups v2, shown on a directory that imitates a hierarchy.

It shows the protocol, not a kernel: files that the kernel would make are made by the test, nobody is limited or killed, and of the
kernel's rules only two are imitated: a process is in one group, and a group with processes cannot enable controllers. What a kernel
does is shown by tests/integration/test_cgroups.py, on whatever version the machine has. File names and formats are those of the
kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jobrunner.worker import cgroupfs, cgroups
from tests.support.trees import tree

pytestmark = pytest.mark.needs("linux")

OWN = "system.slice/jobs.service"
MB = 1 << 20


class Imitation:
    """A mounted v2 hierarchy with this process's group in it, and the kernel's two rules."""

    def __init__(self, directory: Path, *, controllers: str = "cpu io memory pids", strangers: tuple[int, ...] = ()) -> None:
        self.proc, self.own = directory / "proc", directory / "cg" / OWN
        (self.proc / "self").mkdir(parents=True)
        self.enter(OWN)
        (self.proc / "self/mountinfo").write_text(f"30 23 0:28 / {directory}/cg rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n")
        self.fill(self.own, {os.getpid(), *strangers})
        (self.own / "cgroup.controllers").write_text(controllers + "\n")
        for name in (f"jobrunner-{os.getpid()}-probe", f"jobrunner-{os.getpid()}-one", cgroups.SUPERVISOR):
            self.fill(self.own / name, set())
            for file in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.kill"):
                (self.own / name / file).write_text("")
            (self.own / name / "memory.peak").write_text("")

    def enter(self, path: str) -> None:
        (self.proc / "self/cgroup").write_text(f"0::/{path}\n")

    def fill(self, directory: Path, pids: set[int]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in sorted(pids)))
        (directory / "cgroup.subtree_control").touch()

    def move(self, pid: int, directory: Path) -> bool:
        for file in self.own.rglob("cgroup.procs"):
            self.fill(file.parent, set(cgroupfs.processes(file.parent)) - {pid})
        self.fill(directory, {*cgroupfs.processes(directory), pid})
        return True

    def demand(self, file: Path | str, value: str) -> None:
        if Path(file).name == "cgroup.subtree_control":
            if cgroupfs.processes(Path(file).parent):
                raise OSError(errno.EBUSY, "no internal processes")
            value = value.replace("+", "")
        if not Path(file).exists():
            raise FileNotFoundError(file)
        Path(file).write_text(value)


@pytest.fixture
def imitate(tmp_path, monkeypatch):
    def make(**facts):
        kernel = Imitation(tmp_path, **facts)
        monkeypatch.setattr(cgroupfs, "move", kernel.move)
        monkeypatch.setattr(cgroupfs, "demand", kernel.demand)
        return kernel

    return make


def detected(kernel: Imitation) -> cgroups.Cgroups:
    """The groups that are found, which there are."""
    found = cgroups.detect(print, kernel.proc)
    assert found is not None
    return found


def test_the_worker_moves_aside(imitate):
    """Alone in its group, the worker moves into a leaf with what it has forked, and memory and pids are enabled for the children."""
    kernel = imitate()
    with tree(lambda inside: inside.say(os.getpid())) as child:
        child.hear()
        kernel.fill(kernel.own, {os.getpid(), child.pid})
        found = detected(kernel)
        assert (found.version, found.memory, found.pids) == (2, kernel.own, kernel.own)
        assert cgroupfs.processes(kernel.own / "jobrunner-supervisor") == sorted([os.getpid(), child.pid])
    assert cgroupfs.processes(kernel.own) == []
    assert (kernel.own / "cgroup.subtree_control").read_text() == "memory pids"


def test_asked_again(imitate):
    """Once aside, this process finds the same place again and moves nobody; so does a worker that it starts."""
    kernel = imitate()
    first = detected(kernel)
    kernel.enter(f"{OWN}/jobrunner-supervisor")
    again = detected(kernel)
    assert (again.version, again.memory, again.pids) == (first.version, first.memory, first.pids)
    assert cgroupfs.processes(kernel.own / "jobrunner-supervisor") == [os.getpid()]


def test_not_alone(imitate):
    """With others in its group nobody is moved, nothing is enabled, and the reason names them."""
    kernel = imitate(strangers=(1, 0))
    reasons: list[str] = []
    assert cgroups.detect(reasons.append, kernel.proc) is None
    assert "holds processes that are not this worker's" in reasons[0]
    assert cgroupfs.processes(kernel.own) == [0, 1, os.getpid()]
    assert (kernel.own / "cgroup.subtree_control").read_text() == ""


def test_refused_by_the_kernel(imitate, monkeypatch):
    """When the controllers cannot be enabled after all, everybody is moved back."""
    kernel = imitate()

    def demand(file, value):
        raise OSError(errno.EBUSY, "no internal processes", str(file))

    monkeypatch.setattr(cgroupfs, "demand", demand)
    reasons: list[str] = []
    assert cgroups.detect(reasons.append, kernel.proc) is None
    assert "cgroup.subtree_control" in reasons[0]
    assert cgroupfs.processes(kernel.own) == [os.getpid()]


def test_without_the_memory_controller(imitate):
    """A hierarchy whose controllers do not reach this group is of no use, and the reason says which is missing."""
    kernel = imitate(controllers="cpu pids")
    reasons: list[str] = []
    assert cgroups.detect(reasons.append, kernel.proc) is None
    assert "the memory controller is not available" in reasons[0]


def test_without_the_pids_controller(imitate):
    """Memory alone can be limited; a limit of processes is then refused."""
    kernel = imitate(controllers="memory")
    found = detected(kernel)
    assert found.pids is None
    group = found.group("one")
    assert group.set_limits(50 * MB, None)
    assert not group.set_limits(50 * MB, 10)
    assert (kernel.own / group._memory.name / "memory.max").read_text() == "max"


@pytest.fixture
def group(imitate):
    kernel = imitate()
    made = detected(kernel).group("one")
    yield made
    made.remove()


def text(group, name):
    return (group._memory / name).read_text()


def test_limits(group):
    """Swap is closed under a memory limit and opened again without one; the whole group goes when somebody has to."""
    assert text(group, "memory.oom.group") == "1"
    assert group.set_limits(50 * MB, 10)
    assert [text(group, f"{name}.max") for name in ("memory", "memory.swap", "pids")] == [str(50 * MB), "0", "10"]
    assert group.set_limits(None, None)
    assert [text(group, f"{name}.max") for name in ("memory", "memory.swap", "pids")] == ["max", "max", "max"]


def test_no_swap_file_without_swap(group):
    """Kernels without swap accounting have no file for it; the limit is set all the same."""
    (group._memory / "memory.swap.max").unlink()
    assert group.set_limits(50 * MB, None)
    assert text(group, "memory.max") == str(50 * MB)


@pytest.mark.parametrize(("anon", "taken"), [(80 * MB, False), (10 * MB, True)])
def test_a_limit_below_usage(group, anon, taken):
    """A v2 kernel would take a limit below what is in use, and kill: it is not written, unless all above it is cache."""
    (group._memory / "memory.current").write_text(f"{90 * MB}\n")
    (group._memory / "memory.stat").write_text(f"anon {anon}\nfile {80 * MB}\nshmem 0\n")
    assert group.set_limits(50 * MB, None) is taken
    assert text(group, "memory.max") == (str(50 * MB) if taken else "max")


def test_counters(group):
    """Usage, kills and refusals are read from their files."""
    (group._memory / "memory.current").write_text("4096\n")
    (group._memory / "memory.events").write_text("low 0\nhigh 0\nmax 31\noom 3\noom_kill 2\noom_group_kill 1\n")
    (group._memory / "pids.events").write_text("max 5\n")
    assert (group.usage_bytes(), group.oom_kills(), group.process_refusals()) == (4096, 2, 5)


def test_peak(group):
    """The peak is reset and read through one descriptor, as the kernel keeps it for each."""
    assert group.reset_peak()
    assert text(group, "memory.peak") == "reset\n"
    (group._memory / "memory.peak").write_text("8192\n")
    assert group.peak_bytes() == 8192


@pytest.mark.parametrize("how", ["no file", "for reading only"])
def test_no_peak_where_it_cannot_be_reset(imitate, monkeypatch, how):
    """Before Linux 6.12 the peak is that of the group's whole life, and root may open the file for writing: there is none to tell."""
    kernel = imitate()
    if how == "no file":
        (kernel.own / f"jobrunner-{os.getpid()}-one" / "memory.peak").unlink()

    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    found = detected(kernel)
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        group = found.group("one")
    assert not group.reset_peak()
    assert group.peak_bytes() is None
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == descriptors


def test_kill(group):
    """The kernel is asked to kill the whole group."""
    assert group.kill() == 0
    assert text(group, "cgroup.kill") == "1"
