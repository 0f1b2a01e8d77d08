"""Owns a scan from paths to report: files found, read once for what tells, and the telling ones looked into.

It must not import the code that it reads, nor end because of a file: what cannot be read is in the report.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jobrunner.migrating import commandlines
from jobrunner.migrating.detecting import Detector
from jobrunner.migrating.evaluating import Evaluator
from jobrunner.migrating.files import (
    Found,
    Source,
    Unread,
    Unreadable,
    Walker,
    holds_requirements,
    notebook_cells,
    plain_text,
    python_text,
    read_bytes,
)
from jobrunner.migrating.ratings import WAYS
from jobrunner.migrating.tree import Tree
from jobrunner.migrating.uses import Report, Use

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

# A file without any of these words, that imports nothing from one that has some, can hold no use: it is not parsed.
_TELLING = re.compile(
    rb"celery|kombu|pika|amqp|kafka|flask_executor|concurrent|threading|_thread|ThreadPool|ProcessPool|\bThread\b|\bTimer\b"
    rb"|multiprocessing|apply_async|send_task|shared_task|update_state|EXECUTOR_|BROKER_|run_in_executor|start_background_task"
    rb"|from queue |queue\.\w*Queue\b|executor|\.delay\b|\.task\b|\.submit\b|\.s\(|\.si\(|flower|redbeat",
    re.IGNORECASE,
)
_CELERY = re.compile(rb"^[ \t]*(?:from|import)[ \t]+[\w.]*celery", re.MULTILINE)
_HOLDER = re.compile(rb"(?:config_from_object\(|config_source=)\s*['\"]?([\w.]+)(?::([\w.]+))?")
_MAKING = re.compile(rb"celery|shared_task|flask_executor|\.task\b|executor", re.IGNORECASE)
_USUAL_HOLDERS = frozenset({"celeryconfig", "celery_config"})  # what Celery's own documentation calls them


class _Looked(NamedTuple):
    """What a first reading of all files has shown.

    Attributes:
        telling: files that have a word that matters.
        makers: those of them that may make an app, a task, a decorator or an executor.
        uses_celery: one of them imports it.
        holders: names of modules and classes that are said to hold settings.
        lines: of all files.
    """

    telling: frozenset[str]
    makers: frozenset[str]
    uses_celery: bool
    holders: frozenset[str]
    lines: int


def scan(
    paths: Sequence[str], *, ways: Collection[str] = WAYS, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Report:
    """Look for every use of the given ways below some paths.

    Args:
        paths: files and directories.
        ways: of `WAYS`.
        include: patterns of paths to look at though they would be passed over, such as `vendor/ours/*`.
        exclude: patterns of paths to pass over.

    Returns:
        What was found; a file that cannot be read is named in it.
    """
    walker = Walker(include, exclude)
    files = list(walker.walk(paths))
    unread: list[Unread] = []
    looked = _look(files, unread)
    tree = Tree([file for file in files if file.kind == "python"], looked.telling)
    evaluator = Evaluator(tree)
    wanted = looked.telling | _users(files, looked, tree)
    uses: list[Use] = []
    for file in files:
        if file.path in wanted:
            try:
                uses += [use for use in _uses(file, looked, tree, evaluator, unread) if use.rule.way in ways]
            except Unreadable as error:
                unread.append(Unread(file.path, str(error)))
            except Exception as error:  # noqa: BLE001  one file of thousands that we do not understand must not cost the others
                unread.append(Unread(file.path, f"a bug of migrate-check: {type(error).__name__}: {error}"))
    uses.sort(key=lambda use: (use.path, use.cell or 0, use.line, use.column))
    return Report(uses, sorted({*walker.unread, *unread}), len(files), looked.lines)


def _look(files: list[Found], unread: list[Unread]) -> _Looked:
    telling, makers, holders, lines, uses_celery = set[str](), set[str](), set(_USUAL_HOLDERS), 0, False
    for file in files:
        try:
            data = read_bytes(file.path)
        except Unreadable as error:
            unread.append(Unread(file.path, str(error)))
            continue
        lines += data.count(b"\n")
        if _TELLING.search(data) or data[:2] in {b"\xff\xfe", b"\xfe\xff"}:  # words of UTF-16 are not seen so
            telling.add(file.path)
            if file.kind == "python" and _MAKING.search(data):
                makers.add(file.path)
            uses_celery = uses_celery or (file.kind != "text" and _CELERY.search(data) is not None)
            for match in _HOLDER.finditer(data):
                holders.update(name.decode() for name in match.groups() if name)
    stems = {name.rpartition(".")[2] for name in holders}
    telling |= {file.path for file in files if file.kind == "python" and _stem(file.path) in stems}
    return _Looked(frozenset(telling), frozenset(makers), uses_celery, frozenset(holders), lines)


def _users(files: list[Found], looked: _Looked, tree: Tree) -> set[str]:
    """Python files that import from one of the makers, themselves without a word that tells: `from .tasks import job`."""
    found = set()
    for file in files:
        if file.kind == "python" and file.path not in looked.telling:
            try:
                imported = tree.imported(file.path, read_bytes(file.path))
            except Unreadable:
                continue  # it is in the report
            modules = (name for module, names in imported for name in [module, *(f"{module}.{part}" for part in names)])
            if any(tree.path_of(name) in looked.makers for name in modules):
                found.add(file.path)
    return found


def _stem(path: str) -> str:
    return Path(path).stem


def _uses(file: Found, looked: _Looked, tree: Tree, evaluator: Evaluator, unread: list[Unread]) -> Iterator[Use]:
    data = read_bytes(file.path)
    if file.kind == "text":
        text = plain_text(data)
        for hit in commandlines.uses_in_text(text, requirements=holds_requirements(file.path), settings=looked.uses_celery):
            yield Use(file.path, None, hit.line, hit.column, hit.what, hit.rule)
        return
    sources = notebook_cells(file.path, data) if file.kind == "notebook" else [Source(file.path, None, python_text(data))]
    if file.kind == "notebook":
        yield from _notebook(sources, looked, tree, evaluator, unread)
        return
    if holds_requirements(file.path):  # setup.py
        for hit in commandlines.uses_in_text(sources[0].text, requirements=True, settings=False):
            if hit.rule.kind == "requirement":
                yield Use(file.path, None, hit.line, hit.column, hit.what, hit.rule)
    yield from _python(sources[0], looked, tree, evaluator)


def _notebook(sources: list[Source], looked: _Looked, tree: Tree, evaluator: Evaluator, unread: list[Unread]) -> Iterator[Use]:
    """Cells share their names: they are looked into as one text, and what is found is told by its cell."""
    good: list[Source] = []
    for source in sources:
        try:
            ast.parse(source.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            unread.append(Unread(f"{source.path}[{source.cell}]", _said(error)))
        else:
            good.append(source)
    starts: list[int] = []
    texts: list[str] = []
    for source in good:
        starts.append(sum(text.count("\n") for text in texts))
        texts.append(source.text.rstrip("\n") + "\n")
    if not good:
        return
    for use in _python(Source(good[0].path, None, "".join(texts)), looked, tree, evaluator):
        index = max(number for number, start in enumerate(starts) if start < use.line)
        yield use._replace(cell=good[index].cell, line=use.line - starts[index])


def _python(source: Source, looked: _Looked, tree: Tree, evaluator: Evaluator) -> Iterator[Use]:
    try:
        module = tree.parse(source.path, source.text)
    except SyntaxError as error:
        raise Unreadable(_said(error)) from error
    stem = _stem(source.path)
    holders = set(looked.holders)
    if {stem, module.name} & holders or any(name.endswith(f".{stem}") for name in holders):
        holders.add("*")
    holders |= {name.rpartition(".")[2] for name in holders}
    classes = frozenset(name for name in holders if name[:1].isupper() or name == "*")
    try:
        yield from Detector(module, source, evaluator, uses_celery=looked.uses_celery, settings_of=classes).run()
    except RecursionError as error:
        raise Unreadable("its expressions are nested too deeply to be followed") from error


def _said(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}" if error.lineno else f"syntax error: {error.msg}"
    return f"cannot be parsed: {type(error).__name__}"
