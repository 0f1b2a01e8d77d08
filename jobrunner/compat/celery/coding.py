"""Owns how the arguments, results and exceptions of tasks become typed JSON, and how they come back.

It must not import a module nor run a class's own constructor because a row names it: only classes of modules that are imported
already are found, and only exceptions and enums among them.
"""

from __future__ import annotations

import sys
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery.exceptions import EncodeError
from jobrunner.jsonvalues import Refusal
from jobrunner.values import UnreadableValue, Values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REST = "*"  # the member that holds positional arguments whose parameters have no names
_EXCEPTION = "$exception"


class ImportedClasses:
    """The exceptions and enums of whatever this process has imported."""

    def name_of(self, cls: type) -> str | None:
        """`module:qualified.name`, when the class can be found again by it."""
        name = f"{cls.__module__}:{cls.__qualname__}"
        return name if self.find(name) is cls else None

    def find(self, name: str) -> type | None:
        """The class of that name; None when its module is not imported, or it is of another kind."""
        module, _, path = name.partition(":")
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            # By type(), not isinstance: a module may hold stand-ins that look something up when they are asked for their class.
            found = vars(found).get(part) if issubclass(type(found), (type, ModuleType)) else None
        return found if issubclass(type(found), type) and issubclass(found, (BaseException, Enum)) else None


values = Values(ImportedClasses())


def encode(value: Any, where: str) -> Any:
    """A value as JSON data.

    Raises:
        EncodeError: it cannot travel; with the place in it and what to pass instead.
    """
    try:
        return values.encode(value)
    except Refusal as refusal:
        advice = f": {refusal.instead}" if refusal.instead else ""
        raise EncodeError(f"{refusal.path(where)} {refusal.problem}{advice}") from refusal


def encode_call(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a call as one object keyed by parameter name, and which of them were given by position.

    Args:
        names: of the parameters that positional arguments fill, as far as they are known here.
        args, kwargs: of the call.

    Raises:
        EncodeError: an argument cannot travel; TypeError: one is given twice.
    """
    named = dict(zip(names, args, strict=False))
    if twice := named.keys() & kwargs.keys():
        raise TypeError(f"got multiple values for argument {min(twice)!r}")
    if REST in kwargs:
        raise EncodeError(f"an argument cannot be called {REST!r}")
    stored = {name: encode(value, name) for name, value in (*named.items(), *kwargs.items())}
    if len(args) > len(named):
        stored[REST] = [encode(value, f"args[{index}]") for index, value in enumerate(args[len(named) :], len(named))]
    return stored, list(named)


def decode_call(stored: Mapping[str, Any], by_position: Sequence[str] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments, as they were given. A row that SQL has written names them all.

    Raises:
        UnreadableValue: the row does not hold what `encode_call` writes.
    """
    arguments = dict(stored)
    rest = arguments.pop(REST, [])
    missing = [name for name in by_position or () if name not in arguments]
    if missing or not isinstance(rest, list):
        raise UnreadableValue(f"the stored arguments lack {', '.join(missing) or 'a list of the rest'}")
    args = [values.decode(arguments.pop(name)) for name in by_position or ()]
    return (*args, *(values.decode(item) for item in rest)), {name: values.decode(item) for name, item in arguments.items()}


def encode_error(error: BaseException) -> Any:
    """An exception as JSON data: whatever of it can travel. None when it does not even let itself be looked at."""
    return values.encode_error(error)


def decode(data: Any) -> Any:
    """A value of `encode` or `encode_error`. An exception whose class is not known here is of a class made for it, by the same name."""
    try:
        return values.decode(data)
    except UnreadableValue:
        stand_in = _stand_in(data)
        if stand_in is None:
            raise
        return stand_in


def exception_named(type_name: str, *args: Any) -> BaseException:
    """An exception of that class where it is known here, else of one made by the same name; its constructor is not run."""
    module, _, name = type_name.rpartition(".")
    found = values.encode_error(Exception(*args))
    if found is None:
        return Exception(*args)
    found[_EXCEPTION]["type"] = f"{module or 'builtins'}:{name}"
    return decode(found)  # type: ignore[no-any-return]


def _stand_in(data: Any) -> BaseException | None:
    facts = data.get(_EXCEPTION) if isinstance(data, dict) else None
    if not isinstance(facts, dict) or not isinstance(facts.get("type"), str) or not isinstance(facts.get("args"), list):
        return None
    module, _, name = facts["type"].rpartition(":")
    try:
        args = [values.decode(item) for item in facts["args"]]
    except UnreadableValue:
        args = [str(item) for item in facts["args"]]
    made: type[Exception] = type(name.rpartition(".")[2] or "Exception", (Exception,), {"__module__": module or __name__})
    return made(*args)
