"""Owns the input of the demonstration: the Python files of this machine, and a few that really make trouble.

It must not read them (the jobs do), nor write anywhere but in its own directory.
"""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

ATTEMPTS_FOR_LATE = 10  # a second apart: the file is there long before they are used up


@dataclass(frozen=True, slots=True)
class Trouble:
    """An input that is bad on purpose.

    Attributes:
        path: where it is, or will be.
        task: what is done with it.
        expected: the state in which its job must end.
        error_type: with which its attempts end that do not succeed.
        story: what is wrong with it and what therefore happens, for people.
    """

    path: Path
    task: str
    expected: str
    error_type: str
    story: str


def find_sources(directory: Path | None = None) -> list[str]:
    """All Python files below `directory`, or those of the standard library and of the installed packages; sorted."""
    places = [directory] if directory is not None else _installed()
    found = {path for place in places for path in _below(os.path.realpath(place)) if _fits_json(path)}
    return sorted(found)


def spread(paths: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of the paths, from all over the list: the same ones each time."""
    if len(paths) <= limit:
        return list(paths)
    return [paths[index * len(paths) // limit] for index in range(limit)]


def make_troubles(directory: Path) -> list[Trouble]:
    """Write the inputs that make trouble. The late one is not written: `deliver` does, when its job has failed once."""
    invalid = Trouble(directory / "invalid_syntax.py", "analyse", "failed", "SyntaxError", "no Python: tried twice, then failed")
    invalid.path.write_text("def unfinished(:\n    return 1\n", encoding="ascii")
    undecodable = Trouble(directory / "undecodable.py", "analyse", "failed", "UnicodeDecodeError", "no UTF-8: tried twice, then failed")
    undecodable.path.write_bytes(b"# one\n# two\nname = '\xff\xfe\xfd'\n")
    late = Trouble(
        directory / "late.py", "analyse", "succeeded", "FileNotFoundError", "not there at first, written later: a retry succeeds"
    )
    deep = Trouble(
        directory / "deep.py",
        "analyse_in_c",
        "quarantined",
        "jobrunner.errors.WorkerProcessDied",
        "really overflows the C stack: dies 3 times (SIGSEGV), then quarantined",
    )
    deep.path.write_text("depth = 'bottomless'\n", encoding="ascii")
    return [invalid, undecodable, late, deep]


def deliver(trouble: Trouble) -> bool:
    """Write the late file, whole at once. Returns whether that was news."""
    if trouble.path.exists():
        return False
    partial = trouble.path.with_suffix(".part")
    partial.write_text("def better_late(than):\n    return than or 'never'\n", encoding="ascii")
    partial.replace(trouble.path)
    return True


def _installed() -> Iterable[str]:
    """Where this Python keeps modules. No other place: a home or a network share may hold millions of files."""
    return [path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))]


def _below(directory: str) -> Iterable[str]:
    for folder, _, names in os.walk(directory):
        yield from (f"{folder}/{name}" for name in names if name.endswith(".py"))


def _fits_json(path: str) -> bool:
    """A name that is no text (bytes of another encoding) cannot be an argument of a job."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in path
