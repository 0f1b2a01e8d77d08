"""Owns which codec belongs to which annotation, and compiles each one once.

It must not raise for an annotation that has none: the function can still be called here and now, only its values are refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import abc
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from jobrunner import codecs, records, structures
from jobrunner.codecs import Codec

_LISTS = {list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection}
_SETS = {set: set, frozenset: frozenset, abc.Set: set, abc.MutableSet: set}
_DICTS = {dict, abc.Mapping, abc.MutableMapping}


class Compiler:
    """Makes codecs and remembers them, so that recursive types end.

    Args:
        lenient: for return values: a naive datetime is taken as it is, because the work is done already.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self._memo: dict[Any, Codec] = {}

    def compile(self, annotation: Any) -> Codec:
        """The codec of an annotation. Never raises: an annotation without one refuses each value instead."""
        try:
            known = self._memo.get(annotation)
        except TypeError:  # unhashable, such as Literal[[]]
            return codecs.unsupported(str(annotation))
        if known is None:
            known = self._memo[annotation] = codecs.unfinished(getattr(annotation, "__qualname__", str(annotation)))
            built = self._build(annotation)
            for slot in Codec.__slots__:
                setattr(known, slot, getattr(built, slot))
        return known

    def _build(self, annotation: Any) -> Codec:  # noqa: C901, PLR0911, PLR0912  one branch per kind of annotation
        if annotation in (Any, object):
            return codecs.anything()
        if annotation is None or annotation is type(None):
            return codecs.NOTHING
        if isinstance(annotation, TypeVar):
            return self.compile(annotation.__bound__ or Any)
        if hasattr(annotation, "__supertype__"):  # NewType
            return self.compile(annotation.__supertype__)
        if hasattr(annotation, "__value__"):  # type X = …
            return self.compile(annotation.__value__)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is typing.Annotated:
            return self.compile(arguments[0])
        if origin is Literal:
            return codecs.literal(arguments)
        if origin in (Union, types.UnionType):
            return structures.union([self.compile(member) for member in arguments])
        kind = origin or annotation
        if kind in _LISTS:
            return structures.items(self.compile(arguments[0] if arguments else Any), list, kind)
        if kind in _SETS:
            return structures.items(self.compile(arguments[0] if arguments else Any), _SETS[kind], kind)
        if kind is tuple:
            return structures.tuple_of(self.compile, arguments)
        if kind in _DICTS:
            return structures.mapping(*(self.compile(member) for member in (arguments or (str, Any))))
        if isinstance(kind, type):
            return self._of_class(kind)
        return codecs.unsupported(str(annotation))

    def _of_class(self, cls: type) -> Codec:  # noqa: PLR0911  one return per kind of class
        simple = (codecs.LENIENT_SCALARS if self.lenient else codecs.STRICT_SCALARS).get(cls)
        if simple is not None:
            return simple
        if issubclass(cls, Enum):
            return codecs.enum(cls)
        if hasattr(cls, "__mapper__"):
            return codecs.unsupported(cls.__qualname__)
        if hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_dump"):
            return records.pydantic_model(cls)
        if dataclasses.is_dataclass(cls):
            return records.dataclass(self.compile, cls)
        if typing.is_typeddict(cls):
            return records.typed_dict(self.compile, cls)
        if issubclass(cls, tuple) and hasattr(cls, "_fields"):
            return records.named_tuple(self.compile, cls)
        return codecs.unsupported(cls.__qualname__, cls)
