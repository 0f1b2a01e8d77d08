"""Owns the files of control groups: where the kernel has mounted them, which group a process is in, how one is read and written.

It must not know what the files mean.

Sources: cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIFIED = ""  # where v1 has the name of a controller, v2 has nothing
_CHUNK = 1 << 16  # bytes asked of the kernel at once


class Mount(NamedTuple):
    """A hierarchy that is mounted: for which controllers, from which group on, and where."""

    controllers: frozenset[str]
    root: str
    where: Path


def membership(pid: int | str, proc: Path = Path("/proc")) -> dict[str, str]:
    """The group of a process, for every controller; nothing when the process is gone."""
    try:
        lines = os.fsdecode(read(f"{proc}/{pid}/cgroup")).splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = (line.split(":", 2) for line in lines)
    return {controller: path for _, controllers, path in found for controller in controllers.split(",")}


def mounts(proc: Path = Path("/proc")) -> Iterator[Mount]:
    """Every mounted hierarchy that this process can see."""
    for line in os.fsdecode(read(proc / "self" / "mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        root, where = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field) for field in before.split()[3:5])
        kind, *_, options = after.split()
        if kind in {"cgroup", "cgroup2"}:
            yield Mount(frozenset({UNIFIED} if kind == "cgroup2" else options.split(",")), root, Path(where))


def own_group(controller: str, proc: Path = Path("/proc")) -> Path | None:
    """The directory of this process's own group; None when it is in none of that controller.

    A container may see only a part of the hierarchy, mounted anywhere, and paths that are not valid where it is: a directory is the
    right one when this process stands in it.

    Raises:
        OSError: it is not mounted where this process can see it.
    """
    path = membership("self", proc).get(controller)
    if path is None:
        return None
    for mount in mounts(proc):
        if controller in mount.controllers:
            directory = mount.where / os.path.relpath(path, mount.root)
            if os.getpid() in processes(directory):
                return directory
    raise OSError(f"this process's group {path} ({controller or 'v2'}) is not mounted where it can be seen")


def processes(directory: Path) -> list[int]:
    """Who is in a group; 0 stands for processes of other pid namespaces, and nothing for a group that is gone."""
    try:
        return sorted({int(pid) for pid in read(f"{directory}/cgroup.procs").split()})
    except OSError:
        return []


def move(pid: int, directory: Path) -> bool:
    """Move a process with all its threads into a group. Returns whether it is there."""
    return write(f"{directory}/cgroup.procs", str(pid))


def words(file: Path | str) -> set[str]:
    """A list of names, such as controllers.

    Raises:
        OSError: it cannot be read.
    """
    return set(read(file).decode("ascii").split())


def keyed(file: Path | str) -> dict[str, int]:
    """A flat keyed file, as the kernel calls it; nothing when it is gone."""
    try:
        pairs = [line.split() for line in read(file).decode("ascii").splitlines()]
    except OSError:
        return {}
    return {key: int(value) for key, value in pairs}


def count(file: str, key: bytes) -> int:
    """One number of a flat keyed file, read for each job that has a limit; 0 when it is gone."""
    try:
        _, found, rest = (b"\n" + read(file)).partition(b"\n" + key + b" ")
    except OSError:
        return 0
    return int(rest.split(maxsplit=1)[0]) if found else 0


def number(file: Path | str) -> int | None:
    """A single value; None when the file is gone or holds another word, such as `max`."""
    try:
        return int(read(file))
    except (OSError, ValueError):
        return None


def read(file: Path | str) -> bytes:
    """The whole file.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        data = b""
        while more := os.read(descriptor, _CHUNK):
            data += more
        return data
    finally:
        os.close(descriptor)


def demand(file: Path | str, value: str) -> None:
    """Write a value in one call, as these files want it, and never make a file.

    Raises:
        OSError: the kernel refuses, or there is no such file.
    """
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)


def write(file: Path | str, value: str, *, missing: bool = False) -> bool:
    """Write a value as `demand` does, where a refusal is an answer.

    Args:
        file: an interface file of a group.
        value: its new value.
        missing: what to answer when there is no such file.

    Returns:
        Whether the kernel took it.
    """
    try:
        demand(file, value)
    except FileNotFoundError:
        return missing
    except OSError:
        return False
    return True


def remove(directory: Path) -> bool:
    """Remove an empty group. Returns whether it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
