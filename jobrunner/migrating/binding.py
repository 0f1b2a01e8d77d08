"""Owns one walk through a module's syntax tree: which name is bound to what in which scope, and the places that may be a use.

It must not decide what anything is: `evaluating` does, for the few names that matter.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Imported(NamedTuple):
    """A name that an import binds.

    Attributes:
        module: absolute dotted name; relative ones are resolved.
        name: what of it; None for the module itself.
    """

    module: str
    name: str | None


class Parameter(NamedTuple):
    """A parameter of a function, in the scope of that function's surroundings."""

    node: ast.arg
    function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    first: bool
    scope: Scope


class Bound(NamedTuple):
    """An expression, function or class that a name is bound to, and the scope in which it stands."""

    node: ast.expr | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    scope: Scope


class Declared(NamedTuple):
    """A name with an annotation: `celery: Celery`."""

    annotation: ast.expr
    scope: Scope


Binding = Imported | Parameter | Bound | Declared


class Scope:
    """Names of a module, class or function.

    Attributes:
        module: the module in which it is.
        parent: where a name is looked up that is not here; the bodies of classes are passed over by functions in them.
        node: the class or function.
    """

    __slots__ = ("is_class", "module", "names", "node", "parent")

    def __init__(self, module: Module, parent: Scope | None, node: ast.AST | None) -> None:
        self.module = module
        self.parent = parent
        self.node = node
        self.is_class = isinstance(node, ast.ClassDef)
        self.names: dict[str, list[Binding]] = {}
        if node is not None:
            module.scopes[id(node)] = self

    def lookup(self, name: str) -> list[Binding]:
        """What a name may be bound to, in the nearest scope that binds it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or not scope.is_class):
                return scope.names[name]
            scope = scope.parent
        return []

    def bind(self, name: str, binding: Binding) -> None:
        """One more thing that a name may be."""
        self.names.setdefault(name, []).append(binding)

    @property
    def owner(self) -> Scope | None:
        """The scope of the nearest class around it."""
        scope = self.parent
        while scope is not None and not scope.is_class:
            scope = scope.parent
        return scope


class Place(NamedTuple):
    """A node that may be a use.

    Attributes:
        inner: it is only the way to a member, as `app.conf` in `app.conf.timezone`.
        called: it is what is called.
    """

    node: ast.AST
    scope: Scope
    inner: bool = False
    called: bool = False


class Module:
    """A parsed module.

    Attributes:
        name: dotted; empty when it is not known.
        path: as it is shown.
        attributes: what `self.name = …` binds, anywhere in the module.
        scopes: of functions and classes, by the identity of their nodes.
        values: what `evaluating` has found out, by the identity of the nodes.
        stars: modules of which everything is imported.
        places: where a use may be, in the order of the text.
    """

    def __init__(self, name: str, path: str, tree: ast.Module, *, is_package: bool = False) -> None:
        self.name = name
        self.path = path
        self.is_package = is_package
        self.scope = Scope(self, None, None)
        self.attributes: dict[str, list[Bound | Declared]] = {}
        self.scopes: dict[int, Scope] = {}
        self.values: dict[int, Any] = {}
        self.stars: list[str] = []
        self.places: list[Place] = []
        _walk(self, tree)

    def keep_imports_only(self) -> None:
        """Let go of the syntax tree: what remains is what the module hands on from others."""
        names, self.scope.names = self.scope.names, {}
        for name, bindings in names.items():
            for binding in bindings:
                if isinstance(binding, Imported):
                    self.scope.bind(name, binding)
        self.attributes, self.scopes, self.places, self.values = {}, {}, [], {}

    def absolute(self, module: str | None, level: int) -> str:
        """The dotted name behind `from ..module import …`."""
        return absolute(self.name, module, level, is_package=self.is_package)


def absolute(name: str, module: str | None, level: int, *, is_package: bool) -> str:
    """The dotted name behind `from ..module import …` in the module of that name."""
    if not level:
        return module or ""
    parts = name.split(".") if name else []
    drop = level - 1 if is_package else level
    base = parts[: len(parts) - drop] if drop <= len(parts) else []
    return ".".join([*base, *([module] if module else [])])


def _walk(module: Module, tree: ast.Module) -> None:
    """Iterative: source may be nested more deeply than Python's own stack allows."""
    pending: list[tuple[ast.AST, Scope, bool, bool]] = [(tree, module.scope, False, False)]
    while pending:
        node, scope, inner, called = pending.pop()
        handler = _HANDLERS.get(type(node))
        below = handler(module, node, scope, inner, called) if handler else None
        if below is None:
            below = [(child, scope, False, False) for child in _children(node)]
        below.reverse()
        pending += below


def _children(node: ast.AST) -> list[ast.AST]:
    """The nodes below one, without contexts and operators: most of a tree, of which nothing is to be known. Much of a scan's time."""
    kind = type(node)
    names = _FIELDS.get(kind)
    if names is None:
        names = _FIELDS[kind] = tuple(name for name in kind._fields if name not in _PLAIN)
    found: list[ast.AST] = []
    for name in names:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            found.append(value)
        elif value.__class__ is list:
            found += [item for item in value if isinstance(item, ast.AST)]
    return found


_PLAIN = frozenset({"ctx", "op", "ops", "id", "attr", "arg", "kind", "type_comment", "level", "conversion", "simple", "is_async", "asname"})
_FIELDS: dict[type, tuple[str, ...]] = {}
_Below = list[tuple[ast.AST, Scope, bool, bool]]


def _import(module: Module, node: ast.Import, scope: Scope, *_: bool) -> _Below:
    for alias in node.names:
        if alias.asname:
            scope.bind(alias.asname, Imported(alias.name, None))
        else:
            scope.bind(alias.name.partition(".")[0], Imported(alias.name.partition(".")[0], None))
    module.places.append(Place(node, scope))
    return []


def _import_from(module: Module, node: ast.ImportFrom, scope: Scope, *_: bool) -> _Below:
    source = module.absolute(node.module, node.level)
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            scope.bind(alias.asname or alias.name, Imported(source, alias.name))
    module.places.append(Place(node, scope))
    return []


def _function(module: Module, node: Any, scope: Scope, *_: bool) -> _Below:
    if not isinstance(node, ast.Lambda):
        scope.bind(node.name, Bound(node, scope))
        module.places.append(Place(node, scope))
    inside = Scope(module, scope, node)
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for index, argument in enumerate(named):
        inside.bind(argument.arg, Parameter(argument, node, index == 0, scope))
    below: _Below = [(child, scope, False, False) for child in getattr(node, "decorator_list", ())]
    below += [(child, scope, False, False) for child in [*arguments.defaults, *filter(None, arguments.kw_defaults)]]
    annotations = [argument.annotation for argument in named if argument.annotation]
    below += [(child, scope, False, False) for child in [*annotations, *filter(None, [getattr(node, "returns", None)])]]
    body = node.body if isinstance(node.body, list) else [node.body]
    return below + [(child, inside, False, False) for child in body]


def _class(module: Module, node: ast.ClassDef, scope: Scope, *_: bool) -> _Below:
    scope.bind(node.name, Bound(node, scope))
    inside = Scope(module, scope, node)
    module.places.append(Place(node, inside))
    outside = [*node.decorator_list, *node.bases, *node.keywords]
    return [(child, scope, False, False) for child in outside] + [(child, inside, False, False) for child in node.body]


def _assign(module: Module, node: ast.Assign | ast.AnnAssign | ast.NamedExpr, scope: Scope, *_: bool) -> None:
    if node.value is not None:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for name, value in _pairs(target, node.value):
                _bind(module, scope, name, Bound(value, scope))
    if isinstance(node, ast.AnnAssign):
        _bind(module, scope, node.target, Declared(node.annotation, scope))
    module.places.append(Place(node, scope))


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple | ast.List):
        if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                yield from _pairs(one, other)
    else:
        yield target, value


def _bind(module: Module, scope: Scope, target: ast.expr, bound: Bound | Declared) -> None:
    if isinstance(target, ast.Name):
        scope.bind(target.id, bound)
        if isinstance(scope.node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_global(scope.node, target.id):
            module.scope.bind(target.id, bound)
    elif isinstance(target, ast.Attribute):
        module.attributes.setdefault(target.attr, []).append(bound)


def _is_global(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    return any(isinstance(statement, ast.Global) and name in statement.names for statement in function.body)


def _with(module: Module, node: ast.With | ast.AsyncWith, scope: Scope, *_: bool) -> None:
    for item in node.items:
        if item.optional_vars is not None:
            _bind(module, scope, item.optional_vars, Bound(item.context_expr, scope))


def _attribute(module: Module, node: ast.Attribute, scope: Scope, inner: bool, called: bool) -> _Below:  # noqa: FBT001  a table's signature
    module.places.append(Place(node, scope, inner, called))
    return [(node.value, scope, True, False)]


def _call(module: Module, node: ast.Call, scope: Scope, *_: bool) -> _Below:
    module.places.append(Place(node, scope))
    return [
        (node.func, scope, False, True),
        *((child, scope, False, False) for child in node.args),
        *((child, scope, False, False) for child in node.keywords),
    ]


def _place(module: Module, node: ast.AST, scope: Scope, inner: bool, called: bool) -> None:  # noqa: FBT001  a table's signature
    module.places.append(Place(node, scope, inner, called))


_HANDLERS: dict[type, Any] = {
    ast.Import: _import, ast.ImportFrom: _import_from, ast.ClassDef: _class, ast.Assign: _assign, ast.AnnAssign: _assign,
    ast.NamedExpr: _assign, ast.With: _with, ast.AsyncWith: _with, ast.Attribute: _attribute, ast.Call: _call, ast.Name: _place,
    ast.Constant: _place, ast.keyword: _place, ast.BinOp: _place, ast.Subscript: _place, ast.List: _place, ast.Tuple: _place,
    ast.Dict: _place,
    **dict.fromkeys(_FUNCTIONS, _function),
}  # fmt: skip
