"""Owns finding out what an expression is, as far as it matters: an app, a task, a result, …, followed through names and modules.

It must not run the code: it follows assignments, imports and returns, and where they lead nowhere the answer is None.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from jobrunner.migrating import symbols
from jobrunner.migrating.binding import Bound, Declared, Imported, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.migrating.binding import Binding, Module, Scope
    from jobrunner.migrating.tree import Tree

_APP_NAMES = frozenset({"celery", "celery_app", "celeryapp"})  # what nearly everybody calls it
_WRAPPERS = 2  # functions inside each other that a decorator with arguments is made of
_SELF = frozenset({"self", "cls"})
_FOLLOWED = frozenset({
    ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.BinOp, ast.IfExp, ast.BoolOp, ast.Await, ast.NamedExpr, ast.Starred,
})  # fmt: skip


class Function(NamedTuple):
    """A function that is no task."""

    bound: Bound


class Klass(NamedTuple):
    """A class that is none of those that matter."""

    bound: Bound


class Instance(NamedTuple):
    """What such a class gives when it is called."""

    klass: Klass


class TreeModule(NamedTuple):
    """A module of the tree."""

    name: str


class Giver(NamedTuple):
    """A function of another module, by what a call of it gives: nothing that holds on to that module's syntax tree."""

    gives: Value


class Kind(NamedTuple):
    """A class of another module, by what its instances have: names and what they are."""

    attributes: tuple[tuple[str, str], ...]


class Thing(NamedTuple):
    """An instance of such a class."""

    kind: Kind


Value: TypeAlias = "str | Function | Klass | Instance | TreeModule | Giver | Kind | Thing"


class Evaluator:
    """Answers what an expression is.

    Args:
        tree: where names that are imported are looked up.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._exports: dict[tuple[str, str], Value | None] = {}
        self._giving: set[int] = set()  # functions of which it is being asked what they give

    def value(self, node: ast.AST, scope: Scope) -> Value | None:
        """What a node is; None when nobody can say."""
        if type(node) not in _FOLLOWED:
            return None
        known = scope.module.values
        key = id(node)
        if key not in known:
            known[key] = None  # while it is looked for: `x = x.y` must come to an end
            known[key] = self._value(node, scope)
        found: Value | None = known[key]
        return found

    def receiver(self, node: ast.AST, scope: Scope) -> Value | None:
        """What a node is whose member is asked for: `current_app` is an app then."""
        found = self.value(node, scope)
        return symbols.PROXIES.get(found, found) if isinstance(found, str) else found

    def _value(self, node: ast.AST, scope: Scope) -> Value | None:  # noqa: PLR0911  a table
        match node:
            case ast.Name():
                return self._name(node.id, scope)
            case ast.Attribute():
                return self._attribute(node, scope)
            case ast.Call():
                return self._call(node, scope)
            case ast.Subscript():
                return self._subscript(node, scope)
            case ast.BinOp(op=ast.BitOr()):
                sides = self.value(node.left, scope), self.value(node.right, scope)
                return "@signature" if "@signature" in sides else None
            case ast.IfExp():
                return self._any([node.body, node.orelse], scope)
            case ast.BoolOp():
                return self._any(node.values, scope)
            case ast.Await() | ast.NamedExpr() | ast.Starred():
                return self.value(node.value, scope)
            case _:
                return None

    def _any(self, nodes: list[ast.expr], scope: Scope) -> Value | None:
        """The first of these that is something."""
        for node in nodes:
            if (found := self.value(node, scope)) is not None:
                return found
        return None

    # -- names

    def _name(self, name: str, scope: Scope) -> Value | None:
        bindings = scope.lookup(name)
        for binding in bindings:
            if (found := self._binding(binding)) is not None:
                return found
        if not bindings:
            for star in map(symbols.original, scope.module.stars):
                if star.partition(".")[0] in symbols.ROOTS:
                    dotted = symbols.canonical(f"{star}.{name}")
                    if symbols.rule_key(dotted) is not None:
                        return dotted
                elif (found := self.export(star, name)) is not None:
                    return found
        return None

    def _binding(self, binding: Binding) -> Value | None:
        match binding:
            case Imported():
                return self._imported(binding)
            case Parameter():
                return self._parameter(binding)
            case Declared():
                return self.instance_of(binding.annotation, binding.scope)
            case Bound(node=ast.ClassDef()):
                return self.class_value(binding)
            case Bound(node=ast.FunctionDef() | ast.AsyncFunctionDef()):
                return self.function_value(binding)
        return self.value(binding.node, binding.scope)

    def _imported(self, binding: Imported) -> Value | None:
        dotted = symbols.original(f"{binding.module}.{binding.name}" if binding.name else binding.module)
        if dotted.partition(".")[0] in symbols.ROOTS or symbols.package_of(dotted):
            return symbols.canonical(dotted)
        if binding.name is None:
            return TreeModule(dotted) if self.tree.holds(dotted) else None
        found = self.export(binding.module, binding.name)
        if found is None and self.tree.holds(dotted):
            return TreeModule(dotted)
        return found if found is not None or self.tree.path_of(binding.module) else _guess(binding.name)

    def export(self, module: str, name: str) -> Value | None:
        """What a module of the tree has under a name."""
        key = (module, name)
        if key in self._exports:
            return self._exports[key]
        self._exports[key] = None  # while it is looked for: modules import each other in circles
        parsed = self.tree.module(module, name)
        self._exports[key] = None if parsed is None else self._outside(self._name(name, parsed.scope))
        return self._exports[key]

    def _outside(self, value: Value | None) -> Value | None:
        """A value as other modules know it."""
        match value:
            case Function():
                if (key := id(value.bound.node)) in self._giving:  # one may return itself
                    return None
                self._giving.add(key)
                try:
                    gives = self._outside(self._returned(value))
                finally:
                    self._giving.discard(key)
                return None if gives is None else Giver(gives)
            case Klass():
                module = value.bound.scope.module
                found = {name: self._own(module, name) for name in module.attributes}
                return Kind(tuple((name, what) for name, what in found.items() if isinstance(what, str)))
            case Instance():
                kind = self._outside(value.klass)
                return Thing(kind) if isinstance(kind, Kind) else None
        return value

    # -- functions, classes, parameters

    def function_value(self, bound: Bound) -> Value:
        """A task when it has a task's decorator, else the function."""
        node = bound.node
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)  # noqa: S101  for the type checker
        decorators = [self._decorator(decorator, bound.scope) for decorator in node.decorator_list]
        if any(isinstance(value, str) and value in symbols.TASK_DECORATORS for value in decorators):
            return "@task"
        return "@job" if {"@job", "@executor.job"} & {value for value in decorators if isinstance(value, str)} else Function(bound)

    def _decorator(self, node: ast.expr, scope: Scope) -> Value | None:
        """What a decorator is; one of the tree's own is what it gives, also by way of a function inside it."""
        value = self.value(node, scope)
        for _ in range(_WRAPPERS):
            if isinstance(value, Function):
                value = self._returned(value)
            elif isinstance(value, Giver):
                value = value.gives
        return value

    def class_value(self, bound: Bound) -> Value:
        """The kind of a class by what it derives from."""
        node = bound.node
        assert isinstance(node, ast.ClassDef)  # noqa: S101  for the type checker
        for base in node.bases:
            value = self.value(base, bound.scope)
            if isinstance(value, str) and (kind := symbols.CLASSES.get(value)) is not None:
                return kind
        return Klass(bound)

    def instance_of(self, annotation: ast.expr, scope: Scope) -> Value | None:
        """What an annotation says that a name is."""
        match annotation:
            case ast.Constant(value=str() as text):
                try:
                    return self.instance_of(ast.parse(text, mode="eval").body, scope)
                except (SyntaxError, ValueError, RecursionError):
                    return None
            case ast.BinOp(op=ast.BitOr()):
                return self.instance_of(annotation.left, scope) or self.instance_of(annotation.right, scope)
            case ast.Subscript():
                return self.instance_of(annotation.slice, scope)
        # Not kept: a text in an annotation was parsed only now, and its nodes are gone when this is answered.
        value = self._value(annotation, scope)
        return self._made_by(value)

    def _parameter(self, parameter: Parameter) -> Value | None:
        node, function, scope = parameter.node, parameter.function, parameter.scope
        if node.annotation is not None and (found := self.instance_of(node.annotation, scope)) is not None:
            return found
        first = parameter.first and not isinstance(function, ast.Lambda)
        if first and (found := self._first(function, node.arg, scope)) is not None:
            return found
        return "@app" if node.arg in _APP_NAMES else None

    def _first(self, function: Any, name: str, scope: Scope) -> Value | None:
        """The first parameter: the task itself, an instance of the class, or the app that an event is about."""
        for decorator in function.decorator_list:
            value = self._decorator(decorator, scope)
            if value in symbols.APP_EVENTS:
                return "@app"
            if isinstance(value, str) and value in symbols.TASK_DECORATORS and (name == "self" or _binds(decorator)):
                return "@task"
        if not scope.is_class or not isinstance(scope.node, ast.ClassDef) or scope.parent is None:
            return None
        return self._made_by(self.class_value(Bound(scope.node, scope.parent)))

    def _made_by(self, value: Value | None) -> Value | None:
        match value:
            case Klass():
                return Instance(value)
            case Kind():
                return Thing(value)
            case str():
                return symbols.RETURNS.get(value)
        return None

    # -- attributes and calls

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Value | None:
        base = self.receiver(node.value, scope)
        match base:
            case str():
                member = symbols.MEMBERS.get(base, {}).get(node.attr)
                return member or symbols.canonical(f"{base}.{node.attr}")
            case TreeModule():
                dotted = f"{base.name}.{node.attr}"
                found = self.export(base.name, node.attr)
                return found if found is not None or not self.tree.holds(dotted) else TreeModule(dotted)
            case Instance():
                found = self._own(base.klass.bound.scope.module, node.attr)
            case Thing():
                found = dict(base.kind.attributes).get(node.attr)
            case _:
                receiver = isinstance(node.value, ast.Name) and node.value.id in _SELF
                found = self._own(scope.module, node.attr) if receiver else None
        return found or ("@app" if node.attr in _APP_NAMES and not isinstance(base, Function | Klass | Giver | Kind) else None)

    def _own(self, module: Module, name: str) -> Value | None:
        """What `self.name` was set to, anywhere in the module."""
        for bound in module.attributes.get(name, ()):
            if (found := self._binding(bound)) is not None:
                return found
        return None

    def _call(self, node: ast.Call, scope: Scope) -> Value | None:
        function = self.value(node.func, scope)
        match function:
            case str():
                return symbols.RETURNS.get(function)
            case Klass() | Kind():
                return self._made_by(function)
            case Function():
                return self._returned(function)
            case Giver():
                return function.gives
        return self._wrapped(node, scope)

    def _wrapped(self, node: ast.Call, scope: Scope) -> Value | None:
        """`super()`, `LocalProxy(lambda: …)`, `app.extensions.get("celery")`."""
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if name == "super" and (owner := scope.owner or (scope if scope.is_class else None)) is not None:
            assert isinstance(owner.node, ast.ClassDef)  # noqa: S101  for the type checker
            return self._made_by(self.class_value(Bound(owner.node, owner.parent or owner)))
        if name in {"LocalProxy", "Proxy", "PromiseProxy"} and node.args and isinstance(node.args[0], ast.Lambda):
            return self.value(node.args[0].body, scope)
        if name == "get" and isinstance(called, ast.Attribute) and _is_extensions(called.value) and _says_celery(node.args):
            return "@app"
        return None

    def _returned(self, function: Function) -> Value | None:
        """What a function returns, when one of its returns is something that matters."""
        node, module = function.bound.node, function.bound.scope.module
        scope = module.scopes.get(id(node))
        if scope is None:
            return None
        return self._any(list(_returns(node)), scope)

    def _subscript(self, node: ast.Subscript, scope: Scope) -> Value | None:
        if _is_extensions(node.value) and _says_celery([node.slice]):
            return "@app"
        base = self.value(node.value, scope)
        if base == "@tasks":
            return "@task"
        return base if isinstance(base, str) and base in symbols.CLASSES else None


def _returns(function: ast.AST) -> Iterator[ast.expr]:
    pending = list(ast.iter_child_nodes(function))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef | ast.expr):
            pending.extend(ast.iter_child_nodes(node))


def _binds(decorator: ast.expr) -> bool:
    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
    return any(keyword.arg == "bind" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True for keyword in keywords)


def _is_extensions(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "extensions"


def _says_celery(nodes: list[ast.expr]) -> bool:
    return bool(nodes) and isinstance(nodes[0], ast.Constant) and isinstance(nodes[0].value, str) and "celery" in nodes[0].value.lower()


def _guess(name: str) -> str | None:
    """What a name is that comes from a package outside the tree, by what it is called."""
    plain = name.lower()
    if "celery" not in plain:
        return None
    if name[:1].isupper() and not name.isupper():
        return "@cls:app"
    if name.isupper():
        return None
    verbs = {"make", "create", "init", "get", "build", "configure", "setup"}
    return "celery.Celery" if verbs & set(plain.split("_")) else "@app"
