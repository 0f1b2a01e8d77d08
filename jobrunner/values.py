"""Owns the typed JSON of values that have no annotation: what goes in comes back equal and of the same type, by a fixed list of tags.

It must not import nor look up anything by a name that it reads: classes come from a `Classes`, which the application fills. A tag is an
object with one member whose name begins with `$`, such as `{"$tuple": [1, 2]}`; a dict of the user's with such a name is written as pairs.
"""

from __future__ import annotations

import builtins
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, Flag
from typing import TYPE_CHECKING, Any, Protocol, cast

from jobrunner import errors, scalars
from jobrunner import jsonvalues as jv
from jobrunner.errors import JobrunnerError
from jobrunner.jsonvalues import Refusal
from jobrunner.scalars import MARK, UnreadableValue, listed
from jobrunner.travelling import advice

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH = jv.MAX_DEPTH - 4  # of JSON: what stands around it in the row has some levels, too
__all__ = ["NoClasses", "RemoteError", "UnreadableValue", "Values"]


class RemoteError(JobrunnerError):
    """Stands for an exception whose class this process may not rebuild; `type_name` is that class, `text` is what it said."""

    hint = "it comes back as what it is once its module has a task, or stands in JOBRUNNER_ALLOWED_MODULES"

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}".rstrip(": "))
        self.type_name, self.text = type_name, text


class Classes(Protocol):
    """The enums and exceptions of an application that may travel."""

    def name_of(self, cls: type) -> str | None:
        """`module:qualified.name` when it may."""

    def find(self, name: str) -> type | None:
        """The class of that name when it may."""


class NoClasses:
    """None but the built-in exceptions and ours, which need no permission."""

    def name_of(self, cls: type) -> str | None:  # noqa: ARG002
        """No class has one."""
        return None

    def find(self, name: str) -> type | None:  # noqa: ARG002
        """There is none."""
        return None


class Values:
    """Encodes and decodes for one application."""

    def __init__(self, classes: Classes | None = None) -> None:
        self._classes = classes or NoClasses()
        self._decoders: dict[str, Callable[[Any, int], Any]] = {
            **scalars.DECODERS, "tuple": self._tuple, "set": self._set, "frozenset": self._frozenset, "dict": self._dict,
            "enum": self._enum, "exception": self._exception,
        }  # fmt: skip

    def encode(self, value: Any, depth: int = 0) -> Any:
        """The value as plain JSON data.

        Raises:
            Refusal: it cannot travel, or would come back as something else; with the place in it, and what to pass instead.
        """
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str or kind is int or kind is float:
            tagged = scalars.text(value) if kind is str else scalars.number(value)
            return value if tagged is None else _tag(*tagged)
        if kind is list:
            return self._items(value, depth, 1)
        if kind is dict:
            return self._members(value, depth)
        return self._tagged(value, kind, depth)

    def decode(self, data: Any, depth: int = 0) -> Any:
        """The value that `encode` has made `data` of.

        Raises:
            UnreadableValue: whatever else is wrong with it.
        """
        if depth > jv.MAX_DEPTH:
            raise UnreadableValue(f"stored data is nested deeper than {jv.MAX_DEPTH} levels")
        if type(data) is list:
            return [self.decode(item, depth + 1) for item in data]
        if type(data) is not dict:
            if data is None or type(data) in (str, bool, int, float):
                return data
            raise UnreadableValue(f"stored data is of type {jv.type_name(data)}, which is no JSON")
        tag = next((name for name in data if name.startswith(MARK)), None)
        if tag is None:
            return {name: self.decode(item, depth + 1) for name, item in data.items()}
        decoder = self._decoders.get(tag[1:])
        if decoder is None or len(data) != 1:
            raise UnreadableValue(f"stored data has an unknown tag {tag[:60]!r}")
        try:
            return decoder(data[tag], depth + 1)
        except UnreadableValue:
            raise
        except Exception as error:
            raise UnreadableValue(f"stored data cannot be read as {tag[1:]}: {type(error).__name__}") from error

    def encode_error(self, error: BaseException) -> Any:
        """Any exception; of what it carries, that which can travel. Never raises for what the exception does."""
        try:
            parts = _parts(error)
            name = self._name_of(type(error)) or f"{type(error).__module__}:{type(error).__qualname__}"
            args, state = self._all_or_text(error, parts[0]), self._what_can(parts[1])
            return _tag("exception", {"type": name, "args": args, "state": state})
        except Exception:  # noqa: BLE001  an exception may attack its own description: its name and text are on record anyway
            return None

    # -- encoding

    def _items(self, values: Any, depth: int, levels: int) -> list[Any]:
        if depth + levels > MAX_DEPTH:
            raise jv.too_deep()
        items: list[Any] = []
        try:
            for item in values:
                items.append(self.encode(item, depth + levels))  # noqa: PERF401  the except needs to know how far it came
        except Refusal as refusal:
            refusal.step(f"[{len(items)}]", values)
            raise
        return items

    def _members(self, value: dict[Any, Any], depth: int) -> Any:
        if depth + 1 > MAX_DEPTH:
            raise jv.too_deep()
        plain = all(type(key) is str and not key.startswith(MARK) and jv.text_problem(key) is None for key in value)
        levels = 1 if plain else 3
        members: list[tuple[Any, Any]] = []
        key: object = None
        try:
            for key, item in value.items():
                members.append((key if plain else self.encode(key, depth + levels), self.encode(item, depth + levels)))
        except Refusal as refusal:
            refusal.step(jv.key_step(key), value)
            raise
        return dict(members) if plain else _tag("dict", [list(pair) for pair in members])

    def _tagged(self, value: Any, kind: type, depth: int) -> Any:
        if kind is tuple:
            return _tag("tuple", self._items(value, depth, 2))
        if kind is set or kind is frozenset:
            return _tag(kind.__name__, jv.sorted_set(self._items(value, depth, 2)))
        if kind in scalars.ENCODERS:
            return _tag(*scalars.ENCODERS[kind](value))
        if issubclass(kind, Enum):
            return self._member(value, kind)
        if issubclass(kind, BaseException) and self._name_of(kind) is not None:
            args, state = _parts(value)
            data = {"type": self._name_of(kind), "args": self._items(args, depth, 3), "state": self._what_can(state)}
            return _tag("exception", data)
        return self._subclass(value, kind, depth)

    def _member(self, value: Any, kind: type[Enum]) -> Any:
        name, member = self._name_of(kind), kind.__members__.get(value.name)
        if name is None:
            raise Refusal(
                f"is of the enum {kind.__qualname__}, whose module {kind.__module__!r} is not one that jobs may use",
                instead="pass its value, or name the module in JOBRUNNER_ALLOWED_MODULES",
            )
        if member is not None and member is value:
            return _tag("enum", {"class": name, "name": member.name})
        if isinstance(value, Flag):
            return _tag("enum", {"class": name, "value": value.value})
        raise Refusal(f"is {value!r}, which has no name of its own", instead="pass its value")

    def _subclass(self, value: Any, kind: type, depth: int) -> Any:
        """A subclass of a built-in type travels as that type when nothing is lost by it: when it comes back equal."""
        if issubclass(kind, tuple):
            problem = f"is of type {kind.__qualname__} and would come back as a plain tuple"
            raise Refusal(problem, instead="pass a tuple or a dict of its fields")
        for base in _BASES:
            if issubclass(kind, base):
                data = self.encode(_as(base, value), depth)
                if base in _CONTAINERS or self.decode(data) == value or value != value:  # noqa: PLR0124  NaN of a subclass of float
                    return data
        raise Refusal(_describe(value), instead=jv.what_instead(value))

    def _all_or_text(self, error: BaseException, args: tuple[Any, ...]) -> list[Any]:
        try:
            return self._items(args, 0, 3)
        except Exception:  # noqa: BLE001  whatever an argument does when it is read: the text is what everybody looks for
            return [self.encode(str(error))]

    def _what_can(self, state: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in state.items():
            try:
                if not name.startswith(MARK):
                    kept |= self._members({name: value}, 4)
            except Exception:  # noqa: BLE001, S112  attributes are beside the point: what cannot travel stays behind
                continue
        return kept

    def _name_of(self, kind: type) -> str | None:
        return _FREE_NAMES.get(kind) or self._classes.name_of(kind)

    def _find(self, name: object, base: type) -> Any:
        found = (_FREE.get(name) or self._classes.find(name)) if isinstance(name, str) else None
        if not isinstance(found, type) or not issubclass(found, base):
            raise UnreadableValue(f"stored data names the class {str(name)[:100]!r}, which this application does not allow")
        return found

    # -- decoding

    def _tuple(self, data: Any, depth: int) -> tuple[Any, ...]:
        return tuple(self.decode(listed(data), depth))

    def _set(self, data: Any, depth: int) -> set[Any]:
        return set(self.decode(listed(data), depth))

    def _frozenset(self, data: Any, depth: int) -> frozenset[Any]:
        return frozenset(self.decode(listed(data), depth))

    def _dict(self, data: Any, depth: int) -> dict[Any, Any]:
        return {self.decode(key, depth + 2): self.decode(value, depth + 2) for key, value in listed(data)}

    def _enum(self, data: Any, _depth: int) -> Any:
        cls = self._find(data["class"], Enum)
        if "name" in data:
            return cls.__members__[data["name"]]
        value = data["value"]
        if not issubclass(cls, Flag) or type(value) is not int:
            raise UnreadableValue(f"stored data is no member of {cls.__qualname__}")
        return cls(value)

    def _exception(self, data: Any, depth: int) -> BaseException:
        cls = self._find(data["type"], BaseException)
        args, state = self.decode(listed(data["args"]), depth + 1), self.decode(data["state"], depth + 1)
        return _rebuild(cls, tuple(args), dict(state))


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """The exception without its own constructor, which may want other arguments and do anything: only the built-in part is run."""
    base = cast("type[BaseException]", next(kind for kind in cls.__mro__ if kind.__module__ == "builtins"))
    error = base.__new__(cls, *args)
    base.__init__(error, *args)
    for kind, names in _FIELDS.items():
        if isinstance(error, kind):
            for name in names & state.keys():
                vars(kind)[name].__set__(error, state.pop(name))
    error.__dict__.update(state)
    return error


def _parts(error: BaseException) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and attributes, as the built-in part of the exception gives them; its own `__reduce__` could give anything."""
    base: Any = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    _, args, *states = base.__reduce__(error)
    state = dict(states[0] or {}) if states else {}
    state.pop("args", None)  # AttributeError has them there as well, from Python 3.12 on
    return args, state


def _tag(name: str, data: Any) -> dict[str, Any]:
    return {MARK + name: data}


def _as(base: type, value: Any) -> Any:
    """The part of a subclass's instance that is `base`'s."""
    if base is str:
        return str.__str__(value)
    if base is datetime:
        return datetime.combine(date(value.year, value.month, value.day), value.timetz())
    return date(value.year, value.month, value.day) if base is date else base(value)


def _describe(value: object) -> str:
    if advice(value) is not None or jv.is_orm_object(value):
        return jv.describe_unfit(value)
    return f"is of type {jv.type_name(value)}, which cannot travel to another process"


# The most special first: a datetime is a date as well.
_BASES = (str, int, float, complex, list, dict, set, frozenset, bytes, bytearray, datetime, date, Decimal)
_CONTAINERS = {list, dict, set, frozenset}
# What built-in exceptions keep beside their arguments and not in their `__dict__`, where it would not be seen.
_FIELDS: dict[type[BaseException], set[str]] = {ImportError: {"name", "path"}, AttributeError: {"name"}}
_FREE: dict[str, type] = {
    f"{home.__name__}:{name}": kind
    for home, base in ((builtins, BaseException), (errors, JobrunnerError))
    for name, kind in vars(home).items()
    if isinstance(kind, type) and issubclass(kind, base) and kind.__name__ == name
}
_FREE_NAMES = {kind: name for name, kind in _FREE.items()}
