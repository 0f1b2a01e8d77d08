"""The worker's own group is found wherever it is mounted, or not at all: from texts as kernels, containers and systemd write them."""

from __future__ import annotations

import os

import pytest

from jobrunner.worker import cgroupfs

V1 = "9:name=systemd:/\n8:pids:/user.slice\n4:cpu,cpuacct:/\n3:memory:/user.slice/x:y\n0::/\n"
V2 = "0::/system.slice/jobs.service\n"


@pytest.fixture
def proc(tmp_path):
    """Writes a /proc with this membership and these mounts: (root, mount point, kind, options)."""

    def write(membership, *mounts):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(membership)
        lines = ["22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n", "23 1 254:1 / / rw - ext4 /dev/vda rw\n"]
        for number, (root, where, kind, options) in enumerate(mounts, 30):
            point = str(tmp_path / where).replace("\\", "\\134").replace(" ", "\\040")
            optional = "shared:9 master:1 " if number % 2 else ""
            lines.append(f"{number} 23 0:28 {root} {point} rw,relatime {optional}- {kind} {kind} {options}\n")
        (tmp_path / "proc/self/mountinfo").write_text("".join(lines))
        return tmp_path / "proc"

    return write


@pytest.fixture
def stand(tmp_path):
    """Makes a group in which this process stands."""

    def make(path, *others):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in (*others, os.getpid())))
        return tmp_path / path

    return make


def test_v1(proc, stand):
    """Each controller has its own hierarchy; a path may contain colons, controllers may share a mount."""
    own = stand("cg/memory/user.slice/x:y")
    together = stand("cg/cpu,cpuacct")
    at = proc(V1, ("/", "cg/memory", "cgroup", "rw,memory"), ("/", "cg/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"))
    assert cgroupfs.own_group("memory", at) == own
    assert cgroupfs.own_group("cpuacct", at) == together
    assert cgroupfs.own_group("freezer", at) is None


def test_v2(proc, stand):
    """The unified hierarchy, and no v1 controller."""
    own = stand("cg/system.slice/jobs.service")
    at = proc(V2, ("/", "cg", "cgroup2", "rw,nsdelegate,memory_recursiveprot"))
    assert cgroupfs.own_group(cgroupfs.UNIFIED, at) == own
    assert cgroupfs.own_group("memory", at) is None


def test_hybrid(proc, stand):
    """With both mounted, v2 is not taken for v1 nor the other way round."""
    v1, v2 = stand("cg/memory/user.slice/x:y"), stand("cg/unified")
    at = proc(V1, ("/", "cg/unified", "cgroup2", "rw"), ("/", "cg/memory", "cgroup", "rw,memory"))
    assert cgroupfs.own_group("memory", at) == v1
    assert cgroupfs.own_group(cgroupfs.UNIFIED, at) == v2


def test_a_container_sees_a_part(proc, stand):
    """When a part of the hierarchy is mounted, paths are relative to that part."""
    own = stand("cg/inner")
    at = proc("3:memory:/docker/abc/inner\n", ("/docker/abc", "cg", "cgroup", "rw,memory"))
    assert cgroupfs.own_group("memory", at) == own


def test_mounted_twice(proc, stand):
    """Of several mounts the one counts in which this process stands."""
    own = stand("second/jobs")
    at = proc("0::/jobs\n", ("/other", "first", "cgroup2", "rw"), ("/", "second", "cgroup2", "rw"))
    assert cgroupfs.own_group(cgroupfs.UNIFIED, at) == own


def test_a_mount_point_with_blanks(proc, stand):
    """Blanks and backslashes in a mount point are written as octal numbers."""
    own = stand("c g/a\\b/system.slice/jobs.service")
    assert cgroupfs.own_group(cgroupfs.UNIFIED, proc(V2, ("/", "c g/a\\b", "cgroup2", "rw"))) == own


@pytest.mark.parametrize("path", ["/../../elsewhere", "/elsewhere", "/"])
def test_somebody_elses_group(proc, stand, tmp_path, path):
    """A directory in which this process does not stand is not its group, however well the path fits."""
    stand("cg/right")
    for name in ("cg", "cg/elsewhere"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "cgroup.procs").write_text("1\n2\n0\n")
    with pytest.raises(OSError, match="is not mounted where it can be seen"):
        cgroupfs.own_group(cgroupfs.UNIFIED, proc(f"0::{path}\n", ("/", "cg", "cgroup2", "rw")))


def test_without_control_groups(proc):
    """A kernel without them has none; one where nothing is mounted says so."""
    assert cgroupfs.own_group("memory", proc("")) is None


def test_not_mounted(proc):
    """A member of a group that is mounted nowhere is told."""
    with pytest.raises(OSError, match=r"/system.slice/jobs.service \(v2\) is not mounted"):
        cgroupfs.own_group(cgroupfs.UNIFIED, proc(V2))


def test_files(tmp_path):
    """Values are read as the kernel writes them, and what is missing is no exception but an answer."""
    (tmp_path / "cgroup.procs").write_text("7\n3\n7\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4096\n")
    assert cgroupfs.processes(tmp_path) == [3, 7]
    assert cgroupfs.keyed(tmp_path / "memory.events") == {"low": 0, "oom": 2, "oom_kill": 1}
    assert cgroupfs.number(tmp_path / "memory.max") is None
    assert cgroupfs.number(tmp_path / "memory.current") == 4096
    gone = tmp_path / "gone"
    assert (cgroupfs.processes(gone), cgroupfs.keyed(gone), cgroupfs.number(gone)) == ([], {}, None)
    assert not cgroupfs.write(gone, "1")
    assert cgroupfs.write(gone, "1", missing=True)
    assert not gone.exists()
