"""Owns the modules of the scanned tree: which dotted name is which file, parsed when it is asked for.

It must not keep more than a few parsed modules: a syntax tree takes a hundred times its text.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.migrating.binding import Module, absolute
from jobrunner.migrating.files import Unreadable, python_text, read_bytes

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from jobrunner.migrating.files import Found

_IMPORTS = re.compile(rb"^[ \t]*(?:from|import)[ \t]+([\w.]+)(?:[ \t]+import[ \t]+(\([^)]*\)|[^\n#]*))?", re.MULTILINE | re.ASCII)
_WORDS = re.compile(rb"\w+|\*", re.ASCII)
_KEPT = 48  # parsed modules: what a package's own modules import of each other


class Tree:
    """The Python files of a scan.

    Args:
        files: all of them, whether they are looked into or not: one may hand on a name that another defines.
        telling: paths of those whose text has a word that matters. Of any other only what it hands on is of interest.
    """

    def __init__(self, files: Iterable[Found] = (), telling: Container[str] = frozenset()) -> None:
        self._telling = telling
        self._names: dict[str, str] = {}
        self._packages: set[str] = set()
        self._paths: dict[str, str | None] = {}  # None where a shorter name could be several files
        self._parsed: OrderedDict[str, Module] = OrderedDict()
        self._handing_on: dict[str, Module | None] = {}
        for file in files:
            self._add(file)

    def _add(self, file: Found) -> None:
        parts = _parts(os.path.relpath(file.path, file.root))
        names = [".".join(parts[start:]) for start in range(len(parts))]
        own = _package_name(file.path)
        self._names[file.path] = own
        for name in names:
            self._paths[name] = None if name in self._paths and self._paths[name] != file.path else file.path
        if own:
            self._paths[own] = file.path
        for name in [*names, own]:
            while name:
                self._packages.add(name)
                name = name.rpartition(".")[0]  # noqa: PLW2901  its packages, the outermost last

    def name_of(self, path: str) -> str:
        """The dotted name of a file; empty when it has none."""
        return self._names.get(path) or ".".join(_parts(path))

    def path_of(self, name: str) -> str | None:
        """The file of a module, or of a package."""
        return self._paths.get(name)

    def holds(self, name: str) -> bool:
        """Whether a module, or a package without a file of its own, is in the tree."""
        return name in self._packages

    def imported(self, path: str, data: bytes) -> Iterator[tuple[str, frozenset[str]]]:
        """What a file imports, by its text: modules as dotted names, and the names that it wants of each."""
        name, is_package = self.name_of(path), Path(path).stem == "__init__"
        for match in _IMPORTS.finditer(data):
            module = match[1].lstrip(b".").decode()
            level = len(match[1]) - len(module)
            names = frozenset(word.decode() for word in _WORDS.findall(match[2] or b""))
            yield absolute(name, module, level, is_package=is_package), names

    def module(self, name: str, wanted: str) -> Module | None:
        """A module, parsed; None when it is not in the tree or cannot be read, or tells nothing itself and does not import `wanted`."""
        path = self.path_of(name)
        if path is None:
            return None
        if path in self._handing_on:
            return self._handing_on[path]
        if path not in self._parsed:
            try:
                data = read_bytes(path)
                if path not in self._telling and not any({wanted, "*"} & names for _, names in self.imported(path, data)):
                    return None
                module = self.parse(path, python_text(data))
            except (Unreadable, SyntaxError):
                module = None
            if module is None or path not in self._telling:
                if module is not None:
                    module.keep_imports_only()
                self._handing_on[path] = module
                return module
            self._parsed[path] = module
            while len(self._parsed) > _KEPT:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(path)
        return self._parsed[path]

    def parse(self, path: str, text: str) -> Module:
        """The module that a text is.

        Raises:
            SyntaxError: it is no Python of today's.
            Unreadable: it is nested too deeply to be parsed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other people's code: `"\d"`, `x is 1`
                tree = ast.parse(text)
        except (RecursionError, MemoryError, ValueError) as error:
            raise Unreadable(f"cannot be parsed: {type(error).__name__}") from error
        return Module(self.name_of(path), path, tree, is_package=Path(path).stem == "__init__")


def _parts(path: str) -> list[str]:
    parts = Path(path).with_suffix("").parts
    return list(parts[:-1] if parts[-1] == "__init__" else parts)


def _package_name(path: str) -> str:
    """The dotted name by the packages that the file is in."""
    parts = _parts(Path(path).name)
    directory = Path(path).absolute().parent
    while (directory / "__init__.py").is_file() and directory.name:
        parts.insert(0, directory.name)
        directory = directory.parent
    return ".".join(parts)
