"""Owns finding settings of Celery in all the forms in which applications write them.

It must not read values, but for the few that decide a rating, such as a serializer: an address may hold a password.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from jobrunner.migrating.binding import Bound
from jobrunner.migrating.celery_settings import NAMES, setting_of
from jobrunner.migrating.ratings import find

if TYPE_CHECKING:
    from jobrunner.migrating.binding import Place, Scope
    from jobrunner.migrating.detecting import Detector

_Found = list[tuple[ast.AST, str, "str | None"]]
_WHOLE = "*"
_COMMON = frozenset({"timezone", "include", "imports", "database_url", "cache_backend"})  # that may be keys of anything
_TELLING = 2  # settings with less common names that make a dict one of settings


class Settings:
    """Finds the settings in one module.

    Args:
        detector: whose module it is, and who takes what is found.
        holders: `*` when the whole module holds settings, else the names of classes of it that do.
    """

    def __init__(self, detector: Detector, holders: frozenset[str]) -> None:
        self.detector = detector
        self.holders = holders

    def name(self, node: ast.AST, name: str, value: str | None = None) -> None:
        """An upper-case name, wherever it stands: CELERY_BROKER_URL, BROKER_URL, EXECUTOR_TYPE."""
        if name.startswith("EXECUTOR_"):
            rule = find("executor", name)
            if rule is not None and rule.name == name:
                self.detector.add(node, f"config {name}", rule)
        elif (name.startswith("CELERY") or self.detector.uses_celery) and (setting := setting_of(name)) is not None:
            rule = find("config", setting, value)
            if rule is not None:
                self.detector.add(node, f"config {name}", rule)

    def setting(self, node: ast.AST, name: str, value: str | None = None) -> None:
        """A name that is a setting because of where it stands."""
        if name.isupper():
            self.name(node, name, value)
        else:
            self.detector.emit(node, "config", "update" if name == "**" else name, value=value)

    # -- where they stand

    def assign(self, node: ast.Assign | ast.AnnAssign, place: Place) -> None:
        """`app.conf.x = …`, `app.conf["x"] = …`, `CELERY_X = …`, `CELERY = dict(…)`, and `x = …` in a module of settings."""
        scope = place.scope
        if node.value is None:
            return
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                self._name(target, node.value, scope)
            else:
                self._member(target, node.value, scope)

    def _name(self, target: ast.Name, assigned: ast.expr, scope: Scope) -> None:
        if target.id.isupper():
            self.name(target, target.id, literal(assigned))
            if target.id == "CELERY":
                self.mapping_of(assigned, scope)
        elif target.id in NAMES and self._holds(scope):
            self.setting(target, target.id, literal(assigned))

    def _member(self, target: ast.expr, assigned: ast.expr, scope: Scope) -> None:
        value, of_app = literal(assigned), self.detector.value
        match target:
            case ast.Attribute() if of_app(target.value, scope) == "@conf":
                self.setting(target, target.attr, value)
            case ast.Attribute() if of_app(target, scope) == "@conf":
                self.mapping_of(assigned, scope)  # app.conf = dict(…)
            case ast.Subscript(slice=ast.Constant(value=str() as key)) if of_app(target.value, scope) == "@conf":
                self.setting(target.slice, key, value)
            case ast.Subscript(slice=ast.Constant(value="CELERY")):
                self.mapping_of(assigned, scope)
            case ast.Subscript(slice=ast.Constant(value=str() as key)) if key.isupper():
                self.name(target.slice, key, value)

    def _holds(self, scope: Scope) -> bool:
        if _WHOLE in self.holders and scope.node is None:
            return True
        return isinstance(scope.node, ast.ClassDef) and (scope.node.name in self.holders or "celery" in scope.node.name.lower())

    def keyword(self, node: ast.keyword, place: Place) -> None:
        """`app.config.update(CELERY_X=…)`, `from_mapping(CELERY=dict(…))`."""
        scope = place.scope
        if node.arg == "CELERY":
            self.mapping_of(node.value, scope)
        elif node.arg is not None and node.arg.isupper():
            self.name(node, node.arg, literal(node.value))

    def mapping(self, node: ast.Dict, place: Place) -> None:
        """`{"CELERY": {…}, "CELERY_X": …}`."""
        scope = place.scope
        texts = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
        of_settings = self.detector.uses_celery and len(NAMES.intersection(texts) - _COMMON) >= _TELLING
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                if of_settings and key.value in NAMES:
                    self.setting(key, key.value, literal(value))
                elif key.value == "CELERY":
                    self.mapping_of(value, scope)
                elif key.value.isupper():
                    self.name(key, key.value, literal(value))
                elif key.value == "schedule":
                    self._schedule(node, key)

    def _schedule(self, node: ast.Dict, key: ast.Constant) -> None:
        keys = {part.value for part in node.keys if isinstance(part, ast.Constant)}
        if "task" in keys and self.detector.uses_celery:
            self.detector.emit(key, "schedule", "entry")

    def subscript(self, node: ast.Subscript, place: Place) -> None:
        """`app.conf["x"]` that is read."""
        scope = place.scope
        match node.slice:
            case ast.Constant(value=str() as key) if self.detector.value(node.value, scope) == "@conf":
                self.setting(node.slice, key)

    def update(self, node: ast.Call, scope: Scope) -> None:
        """`app.conf.update(x=…)`, `app.conf.update({…})`, `app.conf.update(app.config)`."""
        for keyword, name, value in self.detector.keywords(node, scope):
            self.setting(keyword, name, value)
        for argument in node.args:
            if self.find_mapping(argument, scope) is None:
                self.detector.emit(node.func, "config", "update")
            self.mapping_of(argument, scope)

    def asked(self, node: ast.Call) -> None:
        """`app.conf.get("x")`, `app.conf.setdefault("x", …)`."""
        match node.args:
            case [ast.Constant(value=str() as key) as argument, *_]:
                self.setting(argument, key)

    def mapping_of(self, node: ast.AST, scope: Scope) -> None:
        """The settings in a dict, when it can be found."""
        for key, name, value in self.find_mapping(node, scope) or ():
            self.setting(key, name, value)

    def find_mapping(self, node: ast.AST, scope: Scope) -> _Found | None:
        """Keys of a dict: one that stands here, `dict(…)`, or a name of one in this module; None when it cannot be found."""
        match node:
            case ast.Dict():
                return [
                    (key, key.value, literal(value))
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(key.value, str)
                ]
            case ast.Call(func=ast.Name(id="dict")):
                return [(keyword, keyword.arg, literal(keyword.value)) for keyword in node.keywords if keyword.arg is not None]
            case ast.Name():
                for binding in scope.lookup(node.id):
                    if isinstance(binding, Bound) and isinstance(binding.node, ast.Dict | ast.Call):
                        return self.find_mapping(binding.node, binding.scope)
        return None

    def from_object(self, node: ast.Call, scope: Scope) -> None:
        """`app.config_from_object(…)` of a dict or class of this module; a module that it names is found by its name."""
        for argument in node.args[:1]:
            self.mapping_of(argument, scope)
            if isinstance(argument, ast.Name):
                for binding in scope.lookup(argument.id):
                    if isinstance(binding, Bound) and isinstance(binding.node, ast.ClassDef):
                        self._class(binding.node)

    def _class(self, node: ast.ClassDef) -> None:
        for part in node.body:
            match part:
                case ast.Assign(targets=[ast.Name() as target]) | ast.AnnAssign(target=ast.Name() as target) if part.value is not None:
                    self.setting(target, target.id, literal(part.value))


def literal(node: ast.AST) -> str | None:
    """What a plain value is as text; of a list the first one that a rule may be about."""
    match node:
        case ast.Constant(value=str() | bool() | int() | float() as value):
            return str(value)
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            texts = [str(part.value) for part in elements if isinstance(part, ast.Constant)]
            return "pickle" if any("pickle" in text for text in texts) else next(iter(texts), None)
    return None
