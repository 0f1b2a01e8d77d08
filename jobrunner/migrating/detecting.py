"""Owns what is a use: each place of a module that may be one is looked at, and named with the rule that it falls under.

It must not rate: `ratings` has the rules. What stands in settings is `settings_uses`'s part.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from jobrunner.migrating import symbols
from jobrunner.migrating.binding import Bound, Imported
from jobrunner.migrating.celery_imports import TESTS
from jobrunner.migrating.celery_settings import NAMES
from jobrunner.migrating.commandlines import Token, uses_in_tokens
from jobrunner.migrating.evaluating import Function, Giver, Instance, Kind, Klass, Thing, TreeModule
from jobrunner.migrating.ratings import ANY, Rating, Rule, find
from jobrunner.migrating.settings_uses import Settings, literal
from jobrunner.migrating.uses import Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jobrunner.migrating.binding import Module, Place, Scope
    from jobrunner.migrating.evaluating import Evaluator, Value
    from jobrunner.migrating.files import Source

_IMPORT = "Write `jobrunner.compat.celery` for `celery`."
_FIXTURES = frozenset(name for names, _, _ in TESTS for name in names.split() if name.startswith("celery_"))
_PATCHED = (".delay", ".apply_async", ".send_task", ".retry")
_PATCH = re.compile(r"[A-Za-z_][\w.]*")
_PLUMBING = frozenset({"conf", "control", "request", "tasks", "futures"})  # the way to something that is named itself
_QUEUES = frozenset({"Queue", "SimpleQueue", "LifoQueue", "PriorityQueue"})
_THREADS = {
    "threading.Thread": "Thread", "threading.Timer": "Timer", "@cls:thread": "Thread", "_thread.start_new_thread": "start_new_thread",
    "multiprocessing.Process": "Process", "multiprocessing.Pool": "Pool", "multiprocessing.pool.Pool": "Pool",
    "multiprocessing.pool.ThreadPool": "ThreadPool",
}  # fmt: skip
_UNPLACED = {"run_in_executor": ("futures", "run_in_executor"), "start_background_task": ("thread", "start_background_task")}


class Detector:
    """Finds the uses in one module.

    Args:
        module: parsed.
        source: its text and where it is from.
        evaluator: says what an expression is.
        uses_celery: the tree does: then names such as `delay` and BROKER_URL tell by themselves.
        settings_of: what of the module holds settings: `*` for all of it, else names of classes.
    """

    def __init__(
        self, module: Module, source: Source, evaluator: Evaluator, *, uses_celery: bool, settings_of: frozenset[str] = frozenset()
    ) -> None:
        self.module = module
        self.source = source
        self.evaluator = evaluator
        self.uses_celery = uses_celery
        self.uses: dict[tuple[int, int, str, str], Use] = {}
        self.settings = Settings(self, settings_of)
        self.in_canvas = "celery" in source.text
        self._lines = None if source.text.isascii() else source.text.split("\n")
        self._handlers: dict[type, Callable[[Any, Place], None]] = {
            ast.Import: self._import, ast.ImportFrom: self._import_from, ast.Name: self._name, ast.Attribute: self._attribute,
            ast.Call: self._call, ast.ClassDef: self._class, ast.FunctionDef: self._function, ast.AsyncFunctionDef: self._function,
            ast.BinOp: self._operator, ast.Constant: self._constant, ast.List: self._list, ast.Tuple: self._list,
            ast.Assign: self.settings.assign, ast.AnnAssign: self.settings.assign, ast.keyword: self.settings.keyword,
            ast.Dict: self.settings.mapping, ast.Subscript: self.settings.subscript,
        }  # fmt: skip

    def run(self) -> list[Use]:
        """All uses, in the order of the text."""
        for place in self.module.places:
            handler = self._handlers.get(type(place.node))
            if handler is not None:
                handler(place.node, place)
        return sorted(self.uses.values(), key=lambda use: (use.line, use.column))

    # -- saying it

    def emit(self, node: ast.AST, kind: str, name: str, *, value: str | None = None, certain: bool = True) -> None:
        """A use at a node; nothing when no rule knows it."""
        rule = find(kind, name, value)
        if rule is not None:
            shown = name if rule.name in {name, ANY} or "=" not in rule.name else rule.name
            self.add(node, f"{kind} {shown}", rule, certain=certain)

    def emit_known(self, node: ast.AST, kind: str, name: str, *, certain: bool = True) -> None:
        """The same, but only for a name that has a rule of its own."""
        rule = find(kind, name)
        if rule is not None and rule.name == name:
            self.add(node, f"{kind} {name}", rule, certain=certain)

    def add(self, node: ast.AST, what: str, rule: Rule, *, certain: bool = True) -> None:
        """A use under a rule, once for each place and thing."""
        line, column = self._position(node)
        key = (line, column, rule.kind, what.partition("=")[0])
        if key not in self.uses:
            self.uses[key] = Use(self.source.path, self.source.cell, line, column, what, rule, certain)

    def _position(self, node: ast.AST) -> tuple[int, int]:
        """Where to look: a member at its name, which may stand lines below the beginning of its expression."""
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        if isinstance(node, ast.Attribute) and node.end_lineno and node.end_col_offset is not None:
            line, offset = node.end_lineno, node.end_col_offset - len(node.attr.encode())
        if self._lines is not None:  # offsets are bytes of UTF-8
            offset = len(self._lines[line - 1].encode()[:offset].decode("utf-8", "replace"))
        return line, offset + 1

    def value(self, node: ast.AST, scope: Scope) -> Value | None:
        """What an expression is."""
        return self.evaluator.value(node, scope)

    # -- what is imported, and what names stand for

    def _import(self, node: ast.Import, _place: Place) -> None:
        for alias in node.names:
            self._imported(alias, alias.name)

    def _import_from(self, node: ast.ImportFrom, _place: Place) -> None:
        source = self.module.absolute(node.module, node.level)
        for alias in node.names:
            self._imported(alias, source if alias.name == "*" else f"{source}.{alias.name}")

    def _imported(self, node: ast.AST, written: str) -> None:
        dotted = symbols.original(written)
        name = dotted.rpartition(".")[2]
        package = symbols.package_of(dotted)
        way = symbols.ROOTS.get(dotted.partition(".")[0])
        if package is not None:
            self.emit(node, "package", package)
        elif way == "celery":
            self._celery_import(node, dotted, changed=dotted != written)
        elif dotted != written:
            return  # it has been changed already
        elif dotted.startswith("flask_executor"):
            self.emit(node, "executor", name if name != "flask_executor" else ANY)
        elif dotted.startswith("concurrent"):
            self.emit(node, "futures", name if name not in {"futures", "concurrent"} else "concurrent.futures")
        elif way == "threads" and name in {"Thread", "Timer", "Process", "Pool", "ThreadPool", "start_new_thread"}:
            self.emit(node, "thread", name)
        elif way == "queue":
            self._queue(node, dotted, "import")

    def _celery_import(self, node: ast.AST, dotted: str, *, changed: bool) -> None:
        key = symbols.rule_key(symbols.canonical(dotted))
        rule = find(*key) if key else find("import", dotted)
        if rule is not None and not (changed and rule.rating is Rating.OK):
            advice = _IMPORT if rule.rating is Rating.OK else rule.advice
            self.add(node, f"import {dotted}", Rule(rule.way, "import", dotted, rule.rating, advice))

    def _queue(self, node: ast.AST, dotted: str, name: str) -> None:
        if dotted.startswith("kombu") and self.in_canvas:  # queues of a Celery app are named with kombu's classes
            self.emit(node, "import", dotted)
        else:
            self.emit(node, "message queue", name)

    def _name(self, node: ast.Name, place: Place) -> None:
        scope = place.scope
        if isinstance(node.ctx, ast.Load) and (
            place.called or scope.module.stars or any(isinstance(binding, Imported) for binding in scope.lookup(node.id))
        ):
            value = self.value(node, scope)
            if isinstance(value, str) and not value.startswith("@"):
                self._external(node, value, place)

    def _external(self, node: ast.AST, dotted: str, place: Place) -> None:
        """A public name of a package that matters."""
        name = dotted.rpartition(".")[2]
        if dotted.startswith("celery."):
            key = symbols.rule_key(dotted)
            if key is not None:
                self.emit(node, *key)
            elif not place.inner and not _within_known(dotted):
                self.emit(node, "import", dotted)
        elif dotted.startswith(("flask_executor.", "concurrent.futures.")):
            self.emit_known(node, "executor" if dotted.startswith("flask") else "futures", name)
        elif symbols.ROOTS.get(dotted.partition(".")[0]) == "queue" and not place.inner and "." in dotted:
            self._queue(node, dotted, name)

    # -- members and calls

    def _attribute(self, node: ast.Attribute, place: Place) -> None:
        scope = place.scope
        value, base = self.value(node, scope), self.evaluator.receiver(node.value, scope)
        if isinstance(base, str) and base.startswith("@"):
            self._member(place, base, node.attr)
        elif isinstance(value, str) and not value.startswith("@"):
            self._external(node, value, place)
        elif place.called:
            self._unplaced(node, base)
        if node.attr.isupper():
            self.settings.name(node, node.attr)

    def _member(self, place: Place, base: str, name: str) -> None:
        node = place.node
        if place.inner and name in _PLUMBING:
            return
        if base in {"@conf", "@request"}:
            if not (base == "@conf" and place.called):
                self.emit(node, symbols.KINDS[base], name)
        elif base == "@futures":
            self.emit(node, "executor", f"futures.{name}")
        elif base == "@tasks":
            self.emit(node, "app", f"tasks.{name}")
        elif base == "@processes":
            self.emit_known(node, "thread", f"Pool.{name}")
        elif base in symbols.KINDS:
            self.emit_known(node, symbols.KINDS[base], name)
        elif place.called and name in symbols.TELLING and self.uses_celery:
            self.emit(node, "call", name, certain=False)

    def _unplaced(self, node: ast.Attribute, base: Value | None) -> None:
        """A method of nobody knows what: some names tell by themselves in code that uses Celery."""
        if node.attr in _UNPLACED:
            self.emit(node, *_UNPLACED[node.attr], certain=False)
        elif self.uses_celery and not isinstance(base, Klass | Instance | Kind | Thing):
            if node.attr in symbols.TELLING or (node.attr in symbols.CALLED_IN_CANVAS and self.in_canvas):
                self.emit(node, "call", node.attr, certain=False)
            elif node.attr in symbols.TELLING_OF_APP and not isinstance(base, Function | Giver | TreeModule):
                self.emit(node, *symbols.TELLING_OF_APP[node.attr], certain=False)

    def _call(self, node: ast.Call, place: Place) -> None:
        scope = place.scope
        function = self.value(node.func, scope)
        if not isinstance(function, str):
            return
        if function == "@cls:app":
            self.emit(node, "app", "instance")
        kind = symbols.OPTIONS.get(function)
        if kind == "config":
            self.settings.update(node, scope)
        elif kind is not None:
            self._options(node, scope, kind)
        if function in {"@conf.get", "@conf.setdefault", "@conf.pop"}:
            self.settings.asked(node)
        elif function == "@app.config_from_object":
            self.settings.from_object(node, scope)
        elif function in _THREADS:
            self._thread(node, _THREADS[function])
        elif function.partition(".")[0] in {"queue", "multiprocessing"} and function.rpartition(".")[2] in _QUEUES:
            self.emit(node, "thread", "queue.Queue")

    def _options(self, node: ast.Call, scope: Scope, kind: str) -> None:
        for keyword, name, value in self.keywords(node, scope):
            if kind == "app option" and (name in NAMES or name.isupper()):
                self.settings.setting(keyword, name, value)
            elif kind == "control option":
                self.emit_known(keyword, kind, name)
            else:
                self.emit(keyword, kind, name, value=value)

    def keywords(self, node: ast.Call, scope: Scope) -> Iterator[tuple[ast.AST, str, str | None]]:
        """Names and literal values of keyword arguments; those of a dict that is given with ** and can be found, too."""
        for keyword in node.keywords:
            if keyword.arg is not None:
                yield keyword, keyword.arg, literal(keyword.value)
            elif (found := self.settings.find_mapping(keyword.value, scope)) is not None:
                yield from found
            else:
                yield keyword, "**", None

    def _thread(self, node: ast.Call, name: str) -> None:
        text = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)} | {
            part.id for argument in [*node.args, *node.keywords] for part in ast.walk(argument) if isinstance(part, ast.Name)
        }
        with_app = name == "Thread" and bool(text & {"_get_current_object", "app", "current_app"})
        self.emit(node, "thread", "Thread(app)" if with_app else name)

    # -- definitions

    def _class(self, node: ast.ClassDef, place: Place) -> None:
        scope = place.scope
        kind = self.evaluator.class_value(Bound(node, scope.parent or scope))
        if kind == "@cls:app":
            self.emit(node, "app", "subclass")
            for method in _methods(node):
                if method.name not in {"__init__", "init_app"}:
                    self.emit_known(method, "app", method.name)
        elif kind == "@cls:task":
            self.emit(node, "task class", "class")
            for method in _methods(node):
                self.emit_known(method, "task class", method.name)
            for target, value in _attributes(node):
                self.emit(target, "task option", target.id, value=literal(value))
        elif kind == "@cls:thread":
            self.emit(node, "thread", "subclass")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, _place: Place) -> None:
        in_test = node.name.startswith("test") or any("fixture" in ast.dump(decorator) for decorator in node.decorator_list)
        if in_test:
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                if argument.arg in _FIXTURES:
                    self.emit(argument, "test", argument.arg)
            if node.name in _FIXTURES:
                self.emit(node, "test", node.name)

    def _operator(self, node: ast.BinOp, place: Place) -> None:
        scope = place.scope
        if isinstance(node.op, ast.BitOr) and self.value(node, scope) == "@signature":
            self.emit(node.right, "canvas", "|")

    def _constant(self, node: ast.Constant, _place: Place) -> None:
        text = node.value
        if isinstance(text, str):
            if text.isupper():
                self.settings.name(node, text)
            elif self.uses_celery and text.endswith(_PATCHED) and _PATCH.fullmatch(text):
                self.emit(node, "test", "patch")

    def _list(self, node: ast.List | ast.Tuple, _place: Place) -> None:
        """`["celery", "-A", "proj", "worker"]`, as subprocess and `worker_main` take it."""
        texts = [part for part in node.elts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        first = next((index for index, part in enumerate(texts) if str(part.value).rpartition("/")[2] == "celery"), None)
        if first is not None:
            tokens = [Token(str(part.value), *self._position(part)) for part in texts[first:]]
            by_place = {(token.line, token.column): part for token, part in zip(tokens, texts[first:], strict=True)}
            for hit in uses_in_tokens(tokens):
                self.add(by_place[hit.line, hit.column], hit.what, hit.rule)


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]


def _attributes(node: ast.ClassDef) -> Iterator[tuple[ast.Name, ast.expr]]:
    for part in node.body:
        if isinstance(part, ast.Assign):
            yield from ((target, part.value) for target in part.targets if isinstance(target, ast.Name))
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None:
            yield part.target, part.value


def _within_known(dotted: str) -> bool:
    """Whether a part of the name is known: then that part was named already."""
    while "." in dotted:
        dotted = dotted.rpartition(".")[0]
        if symbols.rule_key(dotted) is not None:
            return True
    return False
