"""Owns which files are looked at and what they say: directories walked, kinds told apart, encodings and notebooks read.

It must not import or run anything of what it finds, and a file that cannot be read is a fact to report, never an end.
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import stat
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BYTES = 10_000_000  # of one file: larger ones are data, or generated
_HEAD = 4096  # bytes that decide whether a file without a known name is a script
# Directories of code that somebody else wrote, or that a tool made.
SKIPPED = frozenset({
    "site-packages", "dist-packages", "node_modules", "bower_components", "__pycache__", "venv", "virtualenv", "__pypackages__",
    "build", "dist", "htmlcov", "_vendor", "vendored",
})  # fmt: skip
_HIDDEN_BUT_READ = frozenset({".github", ".gitlab", ".circleci", ".devcontainer", ".ebextensions", ".platform", ".docker"})
_PYTHON = (".py", ".pyw", ".pyi")
_TEXT_SUFFIXES = frozenset({".sh", ".bash", ".service", ".conf", ".ini", ".cfg", ".yml", ".yaml", ".toml", ".env", ".mk", ".bat", ".ps1"})
_TEMPLATES = frozenset({".j2", ".tmpl", ".template", ".tpl", ".dist", ".example", ".sample"})  # the name before it says what the file is
_TEXT_NAMES = re.compile(
    r"^(?:Procfile|Dockerfile|Containerfile|[Mm]akefile|GNUmakefile|[Jj]ustfile|Jenkinsfile|Pipfile|crontab|\.env|\.flaskenv)(?:[._-].*)?$"
)
_REQUIREMENTS = re.compile(
    r"^(?:.*requirements?.*|constraints.*)\.(?:txt|in)$|^(?:pyproject\.toml|Pipfile|setup\.cfg|setup\.py)$", re.IGNORECASE
)
_MAGIC = re.compile(r"^\s*[%!?]")


class Source(NamedTuple):
    """One file, or one cell of a notebook.

    Attributes:
        path: as it is shown: the way from where the scan began.
        cell: of a notebook, from 1.
        text: decoded.
    """

    path: str
    cell: int | None
    text: str


class Found(NamedTuple):
    """A file that is to be looked at.

    Attributes:
        path: as it is shown.
        root: the path that was asked for, from which the names of modules begin.
        kind: python, notebook or text.
    """

    path: str
    root: str
    kind: str


class Unread(NamedTuple):
    """A file that was not looked at, or not understood, and why."""

    path: str
    reason: str


class Unreadable(Exception):
    """A file that cannot be read; its text is the reason."""


class Walker:
    """Finds files below some paths, each once, however many links lead to it.

    Args:
        include: patterns; a path that matches is looked at though its directory would be skipped or its name say nothing.
        exclude: patterns; a path that matches is not looked at.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.include = tuple(include)
        self.exclude = tuple(exclude)
        self.unread: list[Unread] = []
        self._directories: set[tuple[int, int]] = set()
        self._files: set[tuple[int, int]] = set()

    def walk(self, paths: Sequence[str]) -> Iterator[Found]:
        """Every file to be looked at. One that is named itself is looked at whatever its name is."""
        for path in paths:
            shown = os.path.normpath(path)
            if Path(shown).is_dir():
                yield from self._directory(shown, shown)
            elif self._first_time(shown, self._files):
                yield Found(shown, str(Path(shown).parent), kind_of(shown) or "text")

    def _directory(self, top: str, root: str) -> Iterator[Found]:
        pending = [(top, False)]  # with whether only what is included by a pattern counts there
        while pending:
            directory, only = pending.pop()
            if not self._first_time(directory, self._directories):
                continue
            try:
                with os.scandir(directory) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.unread.append(Unread(directory, error.strerror or str(error)))
                continue
            below: list[tuple[str, bool]] = []
            for entry in found:
                path = entry.path.removeprefix("./")
                if _matches(path, self.exclude):
                    continue
                chosen = _matches(path, self.include)
                if _is_directory(entry):
                    foreign = _is_foreign(entry)
                    if chosen or not foreign or any(fnmatch.fnmatch(pattern, f"*{entry.name}/*") for pattern in self.include):
                        below.append((path, (only or foreign) and not chosen))
                elif (chosen or not only) and (kind := kind_of(path) or self._script(path)) and self._first_time(path, self._files):
                    yield Found(path, root, kind)
            pending += reversed(below)

    def _first_time(self, path: str, seen: set[tuple[int, int]]) -> bool:
        try:
            found = Path(path).stat()
        except OSError as error:
            self.unread.append(Unread(path, error.strerror or str(error)))
            return False
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return False  # a pipe or a device: reading it might never end
        known = (found.st_dev, found.st_ino) in seen
        seen.add((found.st_dev, found.st_ino))
        return not known

    def _script(self, path: str) -> str | None:
        """What a file without a telling name is by its first line."""
        if "." in Path(path).name:
            return "text" if _matches(path, self.include) else None
        try:
            if not Path(path).is_file():
                return None
            with Path(path).open("rb") as file:
                first = file.readline(_HEAD)
        except OSError as error:
            self.unread.append(Unread(path, error.strerror or str(error)))
            return None
        if not first.startswith(b"#!"):
            return "text" if _matches(path, self.include) else None
        return "python" if b"python" in first else "text"


def kind_of(path: str) -> str | None:
    """What a file is by its name; None when that does not say."""
    name = Path(path).name
    suffix = Path(name).suffix
    if suffix in _TEMPLATES:
        suffix = Path(Path(name).stem).suffix
    suffix = suffix.lower()
    if suffix in _PYTHON:
        return "python"
    if suffix == ".ipynb":
        return "notebook"
    return "text" if suffix in _TEXT_SUFFIXES or _TEXT_NAMES.match(name) or holds_requirements(path) else None


def holds_requirements(path: str) -> bool:
    """Whether a file names packages that a project needs."""
    return _REQUIREMENTS.match(Path(path).name) is not None


def read_bytes(path: str) -> bytes:
    """What is in a file.

    Raises:
        Unreadable: it is too large, or reading it failed.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if len(data) > MAX_BYTES:
        raise Unreadable(f"larger than {MAX_BYTES // 1_000_000} MB")
    return data


def python_text(data: bytes) -> str:
    """Python source as Python itself would decode it: a byte order mark, a coding line, else UTF-8.

    Raises:
        Unreadable: it is not text in the encoding that it says, or holds NUL bytes.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise Unreadable(f"not readable as text: {error}") from error
    if "\0" in text:
        raise Unreadable("holds NUL bytes: a binary file")
    return text


def plain_text(data: bytes) -> str:
    """Any other text: UTF-8 or, where it is not, bytes shown as they are; empty for a binary file."""
    return "" if b"\0" in data[:_HEAD] else data.decode("utf-8-sig", "replace")


def notebook_cells(path: str, data: bytes) -> list[Source]:
    """The code of a notebook, a source for each cell, with IPython's own commands blanked.

    Raises:
        Unreadable: it is no notebook.
    """
    try:
        cells = json.loads(data)["cells"]
        code = [(number, cell["source"]) for number, cell in enumerate(cells, 1) if cell["cell_type"] == "code"]
        texts = [(number, source if isinstance(source, str) else "".join(source)) for number, source in code]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"not a notebook: {type(error).__name__}") from error
    return [Source(path, number, "\n".join(map(_without_magic, text.split("\n")))) for number, text in texts if not text.startswith("%%")]


def _without_magic(line: str) -> str:
    return "pass" if _MAGIC.match(line) and not line[:1].isspace() else re.sub(r"^(\s+)[%!?].*", r"\1pass", line)


def _is_foreign(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    if name.startswith("."):
        return name not in _HIDDEN_BUT_READ
    return name in SKIPPED or name.endswith(".egg-info") or Path(entry.path, "pyvenv.cfg").exists()


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a loop of links: it leads nowhere


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path, its name, or the directory that it is in matches one of the patterns."""
    plain = [pattern.rstrip("/") for pattern in patterns]
    return any(fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, f"*/{pattern}") for pattern in plain)
