"""Owns what a codec is (encode to JSON data, decode back) and the codecs of types without parts: numbers, text, times, enums, literals.

What could not be brought back is refused when it is encoded, not when the job runs. It must not know about tasks or signatures.
"""

from __future__ import annotations

import typing
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from jobrunner import jsonvalues as jv
from jobrunner import scalars
from jobrunner.jsonvalues import Refusal, type_name

if typing.TYPE_CHECKING:
    from collections.abc import Callable

ALL_KINDS = frozenset({"null", "bool", "number", "string", "array", "object"})


class Codec:
    """Encodes values of one annotation to JSON data and decodes them back.

    Attributes:
        encode: (value, depth) → JSON data; raises Refusal.
        decode: JSON data → value; raises Refusal.
        label: the annotation in words, for messages.
        kinds: the JSON kinds that `encode` may give; a Union uses them to tell its members apart.
        exact: the class whose instances it encodes without loss, if there is one.
    """

    __slots__ = ("decode", "encode", "exact", "kinds", "label")

    def __init__(
        self,
        label: str,
        encode: Callable[[Any, int], Any],
        decode: Callable[[Any], Any],
        kinds: frozenset[str] = ALL_KINDS,
        exact: type | None = None,
    ) -> None:
        self.label = label
        self.encode = encode
        self.decode = decode
        self.kinds = kinds
        self.exact = exact


def anything() -> Codec:
    """No annotation: plain JSON data only, since nothing says what else to bring back."""
    return Codec("any JSON value", jv.plain, _same)


def unsupported(label: str, cls: type | None = None) -> Codec:
    """An annotation that JSON has no form for. Plain data that is an instance of it (a Protocol, a base class) still passes."""

    def encode(value: Any, depth: int) -> Any:
        data = jv.plain(value, depth)
        if cls is None or not _is_instance(value, cls):
            raise Refusal(f"is annotated {label}, which JSON cannot bring back", instead="annotate it with a type that JSON can hold")
        return data

    def decode(data: Any) -> Any:
        if cls is not None and _is_instance(data, cls):
            return data
        raise Refusal(f"is annotated {label}, which JSON cannot bring back", instead="annotate it with a type that JSON can hold")

    return Codec(label, encode, decode)


def unresolved(text: str) -> Codec:
    """An annotation that is a name nobody can resolve at run time, often imported under TYPE_CHECKING only."""

    def encode(value: Any, depth: int) -> Any:
        try:
            return jv.plain(value, depth)
        except Refusal as refusal:
            if refusal.instead.startswith("annotate"):
                refusal.instead = f"its annotation {text!r} cannot be resolved at run time: import that name outside of TYPE_CHECKING"
            raise

    return Codec(text, encode, _same)


def kind_of(data: Any) -> str:
    """The JSON kind of decoded data."""
    return _KIND_OF.get(type(data), "object")


_KIND_OF = {type(None): "null", bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def expected(label: str, value: object) -> Refusal:
    """The refusal of a value of another type, with better advice for what JSON cannot hold at all."""
    try:
        jv.plain(value, rich=True)
    except Refusal as refusal:
        if not refusal.depth_exceeded and jv.describe_unfit(value) == refusal.problem:
            return refusal
    return Refusal(f"is of type {type_name(value)}, expected {label}")


def unfinished(label: str) -> Codec:
    """A codec whose parts are still being compiled; a recursive type meets it inside itself."""
    return Codec(label, _encode_none, _decode_none)


def _same(data: Any) -> Any:
    return data


def _is_instance(value: object, cls: type) -> bool:
    try:
        return isinstance(value, cls)
    except TypeError:  # a Protocol that is not runtime_checkable
        return True


def _encode_none(value: Any, depth: int) -> None:  # noqa: ARG001  the shape of every encoder
    if value is not None:
        raise expected("None", value)


def _decode_none(data: Any) -> None:
    if data is not None:
        raise expected("None", data)


def _encode_int(value: Any, depth: int) -> Any:  # noqa: ARG001
    if type(value) is int:
        return value
    if isinstance(value, int):
        return value if type(value) is bool else int(value)
    raise expected("int", value)


def _decode_int(data: Any) -> int:
    if isinstance(data, int):
        return data
    if isinstance(data, float) and data.is_integer():
        return int(data)
    raise expected("int", data)


def _encode_float(value: Any, depth: int) -> float:  # noqa: ARG001
    if not isinstance(value, (float, int)):
        raise expected("float", value)
    try:
        number = float(value)
    except OverflowError:
        number = float("nan")
    if isinstance(value, int) and number != value:
        raise Refusal("is an int that a float cannot hold exactly", instead="annotate the parameter as int")
    return jv.plain_float(number)


def _decode_float(data: Any) -> float:
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise Refusal("is too large for a float") from None
    raise expected("float", data)


def _encode_str(value: Any, depth: int) -> str:  # noqa: ARG001
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise expected("str", value)


def _exactly(cls: type) -> Callable[[Any], Any]:
    def decode(data: Any) -> Any:
        if type(data) is cls:
            return data
        raise expected(cls.__name__, data)

    return decode


def _checked(cls: type, check: Callable[[Any], Any]) -> Callable[[Any, int], Any]:
    def encode(value: Any, depth: int) -> Any:  # noqa: ARG001
        if isinstance(value, cls):
            return check(value)
        raise expected(cls.__name__, value)

    return encode


def _parsed(cls: type, parse: Callable[[str], Any], check: Callable[[Any], object] | None = None) -> Callable[[Any], Any]:
    def decode(data: Any) -> Any:
        if not isinstance(data, str):
            raise expected(f"{cls.__name__} as text", data)
        try:
            value = parse(data)
        except (ValueError, InvalidOperation, OverflowError):
            raise Refusal(f"is {data[:60]!r}, which is not a {cls.__name__}") from None
        if check is not None:
            check(value)
        return value

    return decode


def _datetime_text(value: datetime) -> str:
    if value.utcoffset() is None:
        raise Refusal(
            "is a datetime without a time zone: another host would read it as another moment",
            instead="pass an aware one, such as datetime.now(UTC)",
        )
    return value.isoformat()


def _date_text(value: date) -> str:
    if isinstance(value, datetime):
        raise Refusal("is of type datetime, expected date", instead="pass value.date()")
    return value.isoformat()


def _time_text(value: time) -> str:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise Refusal("is a time whose zone has no fixed offset, which would be lost", instead="pass a datetime, or a time without zone")
    return value.isoformat()


def _decode_decimal(data: Any) -> Decimal:
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        data = str(data)
    value = _parsed(Decimal, Decimal)(data)
    jv.decimal_text(value)
    return typing.cast("Decimal", value)


def _tagged(cls: type, kind: type | None = None) -> Codec:
    """Of what plain text could stand for as well: with a tag, so that it is told from text in a union. As executors and Celery's tasks."""
    encoder = scalars.ENCODERS[kind or cls]
    label = cls.__name__

    def encode(value: Any, depth: int) -> Any:  # noqa: ARG001
        if not isinstance(value, cls):
            raise expected(label, value)
        tag, data = encoder(value)
        return {f"{scalars.MARK}{tag}": data}

    def decode(data: Any) -> Any:
        [(name, inner)] = data.items() if isinstance(data, dict) and len(data) == 1 else [("", None)]
        reader = scalars.DECODERS.get(str(name).removeprefix(scalars.MARK)) if str(name).startswith(scalars.MARK) else None
        try:
            value = reader(inner, 0) if reader is not None else None
        except (ValueError, TypeError, KeyError):
            raise Refusal(f"is {str(data)[:60]!r}, which is not a {label}") from None
        if not isinstance(value, cls):
            raise expected(f"{label} with its tag, such as {encode(_SAMPLES[cls], 0)!s}", data)
        return value

    return Codec(label, encode, decode, frozenset({"object"}), cls)


_SAMPLES: dict[type, Any] = {bytes: b"abc", bytearray: bytearray(b"abc"), Path: Path("a/b")}
NOTHING = Codec("None", _encode_none, _decode_none, frozenset({"null"}), type(None))
_TEXT = frozenset({"string"})


def _make_scalars(*, lenient: bool) -> dict[type, Codec]:
    aware = None if lenient else _datetime_text
    codecs = {
        int: Codec("int", _encode_int, _decode_int, frozenset({"number", "bool"})),
        float: Codec("float", _encode_float, _decode_float, frozenset({"number"})),
        bool: Codec("bool", _checked(bool, _same), _exactly(bool), frozenset({"bool"})),
        str: Codec("str", _encode_str, _exactly(str), _TEXT),
        datetime: Codec("datetime", _checked(datetime, _datetime_text), _parsed(datetime, datetime.fromisoformat, aware), _TEXT),
        date: Codec("date", _checked(date, _date_text), _parsed(date, date.fromisoformat), _TEXT),
        time: Codec("time", _checked(time, _time_text), _parsed(time, time.fromisoformat), _TEXT),
        timedelta: Codec("timedelta", _checked(timedelta, jv.duration_text), jv.duration_of, _TEXT),
        UUID: Codec("UUID", _checked(UUID, str), _parsed(UUID, UUID), _TEXT),
        Decimal: Codec("Decimal", _checked(Decimal, jv.decimal_text), _decode_decimal, _TEXT),
        bytes: _tagged(bytes),
        bytearray: _tagged(bytearray),
        Path: _tagged(Path, type(Path())),
    }
    for cls, codec in codecs.items():
        codec.exact = cls
    return codecs


STRICT_SCALARS = _make_scalars(lenient=False)
LENIENT_SCALARS = _make_scalars(lenient=True)  # also a datetime without zone


def enum(cls: type[Enum]) -> Codec:
    """An Enum: by value when JSON can hold every value as it is, else by name."""
    by_name = any(jv.enum_data(member) is not member.value for member in cls)

    def encode(value: Any, depth: int) -> Any:  # noqa: ARG001
        if not isinstance(value, cls):
            raise expected(cls.__qualname__, value)
        if not by_name:
            return jv.enum_data(value)
        if value.name not in cls.__members__:
            raise Refusal(f"is {value!r}, which has no name of its own to store", instead="pass the members as a list")
        return value.name

    def decode(data: Any) -> Any:
        try:
            return cls[data] if by_name else cls(data)
        except (KeyError, ValueError, TypeError):
            choices = ", ".join(repr(jv.enum_data(member) if not by_name else member.name) for member in cls)
            raise Refusal(f"is {str(data)[:60]!r}, which is not a {cls.__qualname__}", instead=f"one of: {choices}") from None

    kinds = frozenset(kind_of(member.name if by_name else member.value) for member in cls) or ALL_KINDS
    return Codec(cls.__qualname__, encode, decode, kinds, cls)


def literal(allowed: tuple[Any, ...]) -> Codec:
    """One of the given values, of the given type."""
    label = "one of " + ", ".join(repr(value) for value in allowed)
    pairs = [(value, jv.enum_data(value) if isinstance(value, Enum) else value) for value in allowed]

    def encode(value: Any, depth: int) -> Any:
        for choice, data in pairs:
            if type(choice) is type(value) and choice == value:
                return jv.plain(data, depth)
        raise Refusal(f"is {str(value)[:60]!r}, expected {label}")

    def decode(data: Any) -> Any:
        for choice, known in pairs:
            if type(known) is type(data) and known == data:
                return choice
        raise Refusal(f"is {str(data)[:60]!r}, expected {label}")

    return Codec(label, encode, decode, frozenset(kind_of(data) for _, data in pairs))
