"""Properties of the source itself: short files, no skipped tests, no leftovers, nothing that could run code found in a row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400  # past this a file is two
CODE = ("jobrunner", "webapp", "migrations", "tests", "tools", "bench", "examples")
SUFFIXES = {".py", ".sql", ".html", ".js", ".css"}
FOREIGN = ("vendor", "__pycache__", "node_modules")  # files that we ship and did not write

# Brackets, because this file is searched as well.
LEFTOVER = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")
LEFTOVER_FREE = {".py", ".sql", ".html", ".js", ".css", ".md", ".toml", ".mako", ""}

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "jsonpickle", "marshal", "shelve", "yaml", "joblib"}
UNSAFE_CALLS = {"eval", "exec"}
AVOIDED_TESTS = {"skip", "skipif", "xfail", "importorskip", "skipTest", "skipUnless", "skipIf", "expectedFailure", "flaky"}


def ours(*folders: str) -> list[Path]:
    """Files under these folders that we wrote, as paths relative to the checkout."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(
        path.relative_to(ROOT) for path in found if not set(path.relative_to(ROOT).parts) & set(FOREIGN) and ".min." not in path.name
    )


def python_files(*folders: str) -> list[Path]:
    """Python files under these folders."""
    return [path for path in ours(*folders) if path.suffix == ".py"]


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The whole syntax tree of a file."""
    return list(ast.walk(ast.parse((ROOT / path).read_text(), str(path))))


def called(node: ast.AST) -> str:
    """`a.b.c` of a call or attribute; empty for what is no plain name."""
    if isinstance(node, ast.Call):
        node = node.func
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def imported(node: ast.AST) -> list[str]:
    """The modules that a node imports."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_files_are_short():
    """A file past 400 lines is two files."""
    long = {str(path): lines for path in ours(*CODE) if path.suffix in SUFFIXES and (lines := len(read(path).splitlines())) > MAX_LINES}
    assert not long


def test_no_leftovers():
    """What is left to do is an issue or a roadmap entry, not a comment."""
    places = [*ours(*CODE, "docs"), *(path.relative_to(ROOT) for path in ROOT.glob("*.*") if path.is_file())]
    found = [
        f"{path}:{number}"
        for path in places
        if path.suffix in LEFTOVER_FREE
        for number, line in enumerate(read(path).splitlines(), 1)
        if LEFTOVER.search(line)
    ]
    assert not found


def test_no_test_is_skipped():
    """A test that does not run proves nothing; what a machine cannot run is deselected in one place, which says so."""
    found = [
        f"{path}:{node.lineno}"
        for path in python_files("tests")
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in AVOIDED_TESTS and called(node).split(".")[0] in {"pytest", "unittest", "self"}
    ]
    assert not found


def test_only_waiting_sleeps():
    """Tests wait for something to become true (`tests.support.waiting`); the helpers under tests/support may also be slow on purpose."""
    found = [
        f"{path}:{node.lineno}"
        for path in python_files("tests")
        if path.parts[:2] != ("tests", "support")
        for node in nodes(path)
        if isinstance(node, ast.Call) and called(node) in {"time.sleep", "sleep"}
    ]
    assert not found


@pytest.mark.parametrize("folder", ["jobrunner", "webapp", "migrations"])
def test_nothing_turns_data_into_code(folder):
    """Whoever can insert a row cannot run code: no deserialiser that builds objects, no eval, no exec."""
    found = [
        f"{path}:{node.lineno}"
        for path in python_files(folder)
        for node in nodes(path)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
        and (any(name.split(".")[0] in UNSAFE_MODULES for name in imported(node)) or called(node) in UNSAFE_CALLS)
    ]
    assert not found


def test_every_statement_has_its_header():
    """A SQL file begins with `-- its_name: what it does`, so that a log, a plan and a file are found from each other."""
    headless = [
        str(path) for path in ours("jobrunner/sql") if path.suffix == ".sql" and not re.match(rf"-- {path.stem}: \S", read(path))
    ]
    assert not headless


def test_every_module_says_what_it_owns():
    """Every module of the library has a docstring; an empty `__init__.py` needs none."""
    written = [path for path in python_files("jobrunner", "webapp", "tools") if read(path).strip()]
    silent = [str(path) for path in written if not ast.get_docstring(ast.parse(read(path)))]
    assert not silent


def test_every_test_says_its_property():
    """A test's docstring is the property it holds, in one sentence."""
    silent = [
        f"{path}::{node.name}"
        for path in python_files("tests")
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not silent


@cache
def read(path: Path) -> str:
    """The text of a file of the checkout."""
    return (ROOT / path).read_text()
