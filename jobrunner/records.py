"""Owns the codecs of annotations with named parts: TypedDicts, named tuples, dataclasses, pydantic models.

It must not import pydantic, which is the application's own choice; its models are known by their methods.
"""

from __future__ import annotations

import dataclasses as dc
import typing
from typing import Any

from jobrunner import jsonvalues as jv
from jobrunner.codecs import ALL_KINDS, Codec, expected
from jobrunner.jsonvalues import MAX_DEPTH, Refusal, too_deep

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

_OBJECT = frozenset({"object"})


class _Fields:
    """The named parts of a dataclass, TypedDict or named tuple."""

    def __init__(self, compiled: Callable[[Any], Codec], owner: type, names: list[str], required: AbstractSet[str]) -> None:
        try:
            hints = typing.get_type_hints(owner)
        except (NameError, TypeError, AttributeError):
            hints = {}
        self.codecs = {name: compiled(hints.get(name, Any)) for name in names}
        self.required = required
        self.label = owner.__qualname__.rpartition("<locals>.")[2]

    def encode(self, values: Mapping[str, Any], depth: int, container: object) -> dict[str, Any]:
        if depth >= MAX_DEPTH:
            raise too_deep()
        encoded: dict[str, Any] = {}
        name = ""
        try:
            for name, value in values.items():
                encoded[name] = self.codecs[name].encode(value, depth + 1)
        except Refusal as refusal:
            refusal.step(f".{name}", container)
            raise
        return encoded

    def decode(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise expected(self.label, data)
        self.check_names(data)
        decoded: dict[str, Any] = {}
        name = ""
        try:
            for name, value in data.items():
                decoded[name] = self.codecs[name].decode(value)
        except Refusal as refusal:
            refusal.step(f".{name}", data)
            raise
        return decoded

    def check_names(self, given: Mapping[str, Any]) -> None:
        if unknown := [name for name in given if name not in self.codecs]:
            raise Refusal(f"has {unknown[0]!r}, which {self.label} does not have")
        if missing := sorted(self.required - given.keys()):
            raise Refusal(f"lacks {missing[0]!r}, which {self.label} needs")


def typed_dict(compiled: Callable[[Any], Codec], cls: Any) -> Codec:
    """A TypedDict: exactly its keys, each by its own annotation."""
    fields = _Fields(compiled, cls, list(cls.__annotations__), _required_keys(cls))

    def encode(value: Any, depth: int) -> Any:
        if not isinstance(value, dict):
            raise expected(fields.label, value)
        fields.check_names(value)
        return fields.encode(value, depth, value)

    return Codec(fields.label, encode, fields.decode, _OBJECT, dict)


def _required_keys(cls: Any) -> set[str]:
    # Under `from __future__ import annotations` the class itself does not see its Required[…] and NotRequired[…].
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {}
    marks = {name: typing.get_origin(hint) for name, hint in hints.items()}
    optional = {name for name, mark in marks.items() if mark is typing.NotRequired}
    return (set(cls.__required_keys__) | {name for name, mark in marks.items() if mark is typing.Required}) - optional


def named_tuple(compiled: Callable[[Any], Codec], cls: Any) -> Codec:
    """A named tuple, as an object keyed by its fields."""
    fields = _Fields(compiled, cls, list(cls._fields), set(cls._fields) - set(cls._field_defaults))

    def encode(value: Any, depth: int) -> Any:
        if type(value) is not cls:
            raise expected(fields.label, value)
        return fields.encode(value._asdict(), depth, value)

    return Codec(fields.label, encode, lambda data: _rebuild(cls, fields.decode(data)), _OBJECT, cls)


def dataclass(compiled: Callable[[Any], Codec], cls: Any) -> Codec:
    """A dataclass, as an object keyed by its fields. One that computes in `__post_init__` is rebuilt at once to see that it comes back."""
    declared = dc.fields(cls)
    settable = [field.name for field in declared if field.init]
    required = {field.name for field in declared if field.init and field.default is dc.MISSING and field.default_factory is dc.MISSING}
    fields = _Fields(compiled, cls, settable, required)
    computes = len(settable) < len(declared) or hasattr(cls, "__post_init__")

    def encode(value: Any, depth: int) -> Any:
        if type(value) is not cls:
            raise expected(fields.label, value)
        data = fields.encode({name: getattr(value, name) for name in settable}, depth, value)
        if computes:
            back = decode(data)
            if any(getattr(back, field.name, None) != getattr(value, field.name, None) for field in declared):
                raise Refusal(f"would come back different: {fields.label} computes fields that its arguments do not give again")
        return data

    def decode(data: Any) -> Any:
        return _rebuild(cls, fields.decode(data))

    return Codec(fields.label, encode, decode, _OBJECT, cls)


def _rebuild(cls: Any, values: dict[str, Any]) -> Any:
    try:
        return cls(**values)
    except Exception as error:
        raise Refusal(f"cannot be rebuilt as {cls.__qualname__}: {type(error).__name__}: {error}") from error


def pydantic_model(cls: Any) -> Codec:
    """A pydantic model, by its own JSON form; rebuilt at once to see that it comes back."""
    label = cls.__qualname__.rpartition("<locals>.")[2]

    def encode(value: Any, depth: int) -> Any:
        if type(value) is not cls:
            raise expected(label, value)
        try:
            dumped = value.model_dump(mode="json", by_alias=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise Refusal(f"cannot be stored as JSON: {error}") from error
        data = jv.plain(dumped, depth, rich=True)
        back = decode(data)
        changed = [name for name in cls.model_fields if getattr(back, name) != getattr(value, name)]
        if changed or (back.__pydantic_extra__ or {}) != (value.__pydantic_extra__ or {}):
            raise Refusal(f"would come back different: see {'.'.join([label, *changed[:1]])}")
        return data

    def decode(data: Any) -> Any:
        try:
            # As JSON text, so that a strict model still takes a date written as text.
            return cls.model_validate_json(jv.to_text(data))
        except ValueError as error:
            details: list[Any] = getattr(error, "errors", list)()
            where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in details[0]["loc"]) if details else ""
            refusal = Refusal(f"does not fit {label}: {details[0]['msg'] if details else error}")
            if where:
                refusal.step(where, data)
            raise refusal from error

    return Codec(label, encode, decode, _OBJECT if "root" not in cls.model_fields else ALL_KINDS, cls)
