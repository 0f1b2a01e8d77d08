"""Owns the codecs of annotations with parts that have no names: unions, lists, sets, tuples, dicts.

It must not know classes that an application defines (`records` does).
"""

from __future__ import annotations

import typing
from decimal import Decimal
from typing import Any

from jobrunner import jsonvalues as jv
from jobrunner.codecs import ALL_KINDS, Codec, expected, kind_of
from jobrunner.jsonvalues import MAX_DEPTH, Refusal, too_deep, type_name

if typing.TYPE_CHECKING:
    from collections.abc import Callable

_ARRAY = frozenset({"array"})
_OBJECT = frozenset({"object"})


def union(members: list[Codec]) -> Codec:  # noqa: C901  three closures over the same members
    """One of several. When two members have the same JSON kind, each value is decoded again at once to see what would come back."""
    label = " | ".join(member.label for member in members)
    seen: set[str] = set()
    overlapping = False
    for member in members:
        overlapping = overlapping or bool(member.kinds & seen)
        seen |= member.kinds

    def encode(value: Any, depth: int) -> Any:
        kind = type(value)
        best: Refusal | None = None
        for member in sorted(members, key=lambda member: member.exact is not kind):
            try:
                data = member.encode(value, depth)
            except Refusal as refusal:
                # A member that got into the value says more than one that refused it as a whole.
                if best is None or len(refusal.path("")) > len(best.path("")) or (refusal.instead and not best.instead):
                    best = refusal
                continue
            if overlapping:
                _check_unambiguous(value, data)
            return data
        if best is not None and (best.path("") or best.instead or best.depth_exceeded):
            raise best
        raise expected(label, value)

    def _check_unambiguous(value: Any, data: Any) -> None:
        # jsonb gives a large float back as an int.
        stored = int(Decimal(repr(data))) if type(data) is float and abs(data) >= jv.FLOAT_AS_INT else data
        back = decode(stored)
        if type(back) is not type(value) or back != value:
            raise Refusal(
                f"is of type {type_name(value)} and would come back as {type_name(back)}: the annotation {label} is ambiguous",
                instead="annotate the parameter with one type, or wrap the alternatives in dataclasses",
            )

    def decode(data: Any) -> Any:
        kind = kind_of(data)
        fitting = [member for member in members if kind in member.kinds]
        # The exact type first (1 is an int before it is a float), plain text and "anything" last: they take whatever is left.
        fitting.sort(
            key=lambda member: (member.exact is not type(data) or member.exact is str, member.exact is str, member.kinds == ALL_KINDS)
        )
        refusal: Refusal | None = None
        for member in fitting:
            try:
                return member.decode(data)
            except Refusal as error:
                refusal = error
        if refusal is not None and len(fitting) == 1:
            raise refusal
        raise expected(label, data)

    return Codec(label, encode, decode, frozenset(seen))


def items(item: Codec, build: type, annotated: Any) -> Codec:
    """A list or set. An abstract annotation such as Sequence takes a list or a tuple; a concrete one only its own."""
    label = f"{getattr(annotated, '__name__', annotated)} of {item.label}"
    accepted = annotated if annotated in (list, set, frozenset) else (list, tuple) if build is list else (set, frozenset)

    def encode(value: Any, depth: int) -> Any:
        if not isinstance(value, accepted):
            raise expected(label, value)
        encoded = _encode_items(item, value, depth)
        return encoded if build is list else jv.sorted_set(encoded)

    def decode(data: Any) -> Any:
        decoded = _decode_items(item, data, label)
        try:
            return decoded if build is list else build(decoded)
        except TypeError as error:
            raise Refusal(f"cannot be rebuilt: {error}") from None

    return Codec(label, encode, decode, _ARRAY, build)


def _encode_items(item: Codec, value: Any, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise too_deep()
    encode, encoded = item.encode, []
    try:
        for element in value:
            encoded.append(encode(element, depth + 1))  # noqa: PERF401  the except needs to know how far it came
    except Refusal as refusal:
        refusal.step(f"[{len(encoded)}]", value)
        raise
    return encoded


def _decode_items(item: Codec, data: Any, label: str) -> list[Any]:
    if not isinstance(data, list):
        raise expected(label, data)
    decoded: list[Any] = []
    try:
        for element in data:
            decoded.append(item.decode(element))  # noqa: PERF401
    except Refusal as refusal:
        refusal.step(f"[{len(decoded)}]", data)
        raise
    return decoded


def tuple_of(compiled: Callable[[Any], Codec], arguments: tuple[Any, ...]) -> Codec:  # noqa: C901  two forms of one annotation
    """`tuple[A, B]` or `tuple[A, ...]`."""
    if not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):  # noqa: PLR2004
        item = compiled(arguments[0] if arguments else Any)
        label = f"tuple of {item.label}"

        def encode_all(value: Any, depth: int) -> Any:
            if not isinstance(value, tuple):
                raise expected(label, value)
            return _encode_items(item, value, depth)

        return Codec(label, encode_all, lambda data: tuple(_decode_items(item, data, label)), _ARRAY, tuple)

    parts = [] if arguments == ((),) else [compiled(argument) for argument in arguments]
    label = f"tuple of {len(parts)}"

    def each(value: Any, kind: type, apply: Callable[[Codec, Any], Any]) -> list[Any]:
        if not isinstance(value, kind) or len(value) != len(parts):  # type: ignore[arg-type]
            raise expected(label, value)
        out: list[Any] = []
        try:
            for part, element in zip(parts, value, strict=True):  # type: ignore[call-overload]
                out.append(apply(part, element))
        except Refusal as refusal:
            refusal.step(f"[{len(out)}]", value)
            raise
        return out

    def encode(value: Any, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            raise too_deep()
        return each(value, tuple, lambda part, element: part.encode(element, depth + 1))

    def decode(data: Any) -> Any:
        return tuple(each(data, list, lambda part, element: part.decode(element)))

    return Codec(label, encode, decode, _ARRAY, tuple)


def mapping(key: Codec, value_codec: Codec) -> Codec:
    """A dict. Its keys must be text in JSON: str, or a type that encodes to text, such as UUID, date or a text Enum."""
    textual = key.kinds == {"string"} and key.exact is not str
    label = f"dict of {value_codec.label}"

    def encode(value: Any, depth: int) -> Any:
        if not isinstance(value, dict):
            raise expected(label, value)
        if depth >= MAX_DEPTH:
            raise too_deep()
        encoded: dict[str, Any] = {}
        name: object = None
        try:
            for name, element in value.items():
                text = key.encode(name, depth + 1) if textual else jv.key_text(name)
                encoded[text] = value_codec.encode(element, depth + 1)
        except Refusal as refusal:
            refusal.step(jv.key_step(name), value)
            raise
        return encoded

    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            raise expected(label, data)
        decoded: dict[Any, Any] = {}
        name: object = None
        try:
            for name, element in data.items():
                decoded[key.decode(name) if textual else name] = value_codec.decode(element)
        except Refusal as refusal:
            refusal.step(jv.key_step(name), data)
            raise
        return decoded

    return Codec(label, encode, decode, _OBJECT, dict)
