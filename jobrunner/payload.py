"""Owns the way of a call into one JSON object, keyed by parameter name, and back into a call.

It must not do I/O. What JSON cannot bring back by the task's annotations is refused here, at enqueue, with the path of the
argument; only what the caller passed is stored, so that a new default of the function also holds for jobs that wait.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import typing
from typing import Any

from jobrunner import codecs, jsonvalues
from jobrunner.annotations import Compiler
from jobrunner.errors import InvalidPayload, UnstorableResult
from jobrunner.jsonvalues import Refusal

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.codecs import Codec

RETURN_VALUE = "return value"
CHECKPOINT = "checkpoint"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_arguments = Compiler()
_results = Compiler(lenient=True)


class Parameters:
    """The parameters of a task's function, compiled so that a plain call is bound and encoded in a few microseconds.

    Args:
        function: what the task runs; its annotations are read now, so names they use must exist.
        name: the task's name, for messages.
        filled_by_worker: keyword parameters that no caller passes; they are no part of the signature here.
    """

    def __init__(self, function: Callable[..., Any], name: str, filled_by_worker: tuple[str, ...] = ()) -> None:
        self.name = name
        self._filled = frozenset(filled_by_worker)
        whole = inspect.signature(function)
        self.signature = whole.replace(parameters=[one for one in whole.parameters.values() if one.name not in filled_by_worker])
        hints, unresolved = _hints(function, self.signature)
        self.returns: Any = hints.get("return", Any)
        self._codecs: dict[str, Codec] = {}
        self._extra: inspect.Parameter | None = None
        self._rest: inspect.Parameter | None = None
        positional: list[str] = []
        for parameter in self.signature.parameters.values():
            if parameter.name in unresolved:
                codec = codecs.unresolved(unresolved[parameter.name])
            else:
                codec = _arguments.compile(_whole(parameter, hints.get(parameter.name, Any)))
            self._codecs[parameter.name] = codec
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                self._extra = parameter
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                self._rest = parameter
            elif parameter.kind in _BY_POSITION:
                positional.append(parameter.name)
        simple = len(positional) == len(self._codecs)
        defaults = sum(self.signature.parameters[name].default is not inspect.Parameter.empty for name in positional)
        # Names that a stored object may have, and must have, for its values to be the keyword arguments as they are.
        by_name = all(parameter.kind in _BY_NAME for parameter in self.signature.parameters.values())
        self._named = frozenset(self._codecs) if by_name else frozenset[str]()
        self._needed = {name for name in self._named if self.signature.parameters[name].default is inspect.Parameter.empty}
        self._fast = [(name, self._codecs[name].encode) for name in positional] if simple else []
        self._fewest, self._most = (len(positional) - defaults, len(positional)) if simple else (1, 0)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call as JSON data, keyed by parameter name.

        Raises:
            InvalidPayload: a missing, unexpected or unstorable argument; the message names it.
        """
        name = ""
        bound: dict[str, Any] = {}
        try:
            if not kwargs and self._fewest <= len(args) <= self._most:
                for (name, encode), value in zip(self._fast, args, strict=False):
                    bound[name] = encode(value, 1)
                return bound
            for name, value in self._bound(args, kwargs).items():
                if self._extra is not None and name == self._extra.name:
                    self._add_extra(bound, self._codecs[name].encode(value, 0))
                else:
                    bound[name] = self._codecs[name].encode(value, 1)
        except Refusal as refusal:
            raise self._invalid(refusal, name) from refusal.__cause__
        return bound

    def encode_one(self, name: str, value: Any) -> Any:
        """One argument as the JSON data that `bind` would store under its name: for looking for jobs.

        Raises:
            InvalidPayload: the function has no such parameter, or a job cannot hold such a value there.
        """
        parameter = self.signature.parameters.get(name)
        try:
            if parameter is not None and parameter is not self._extra:
                return self._codecs[name].encode(value, 1)
            if self._extra is None:
                self._refuse_call(f"there is no argument {name!r}")
            return self._codecs[self._extra.name].encode({name: value}, 0)[name]
        except Refusal as refusal:
            raise InvalidPayload(refusal.path(name if parameter is not None else ""), refusal.problem, instead=refusal.instead) from None

    def call(self, data: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the function, from a stored object.

        Raises:
            InvalidPayload: an argument is missing, unexpected, or does not fit its annotation.
        """
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        name = ""
        try:
            if self._needed <= data.keys() <= self._named:
                for name, item in data.items():
                    values[name] = self._codecs[name].decode(item)
                return (), values
            for name, item in data.items():
                if name in self._filled:  # else it would go to **kwargs, and the function be called with it twice
                    self._refuse_call(f"got an unexpected argument {name!r}")
                parameter = self.signature.parameters.get(name)
                if parameter is None or parameter is self._extra:
                    extra[name] = item
                else:
                    values[name] = self._codecs[name].decode(item)
            if extra:
                if self._extra is None:
                    self._refuse_call(f"got an unexpected argument {next(iter(extra))!r}")
                name = self._extra.name
                extra = self._codecs[name].decode(extra)
        except Refusal as refusal:
            raise self._invalid(refusal, name) from refusal.__cause__
        except RecursionError as error:
            raise InvalidPayload(name, "is nested too deep") from error
        return self._arranged(values, extra)

    def _arranged(self, values: dict[str, Any], extra: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        rest = values.pop(self._rest.name, ()) if self._rest is not None else ()
        gap = False  # a positional-only parameter left out: what follows it cannot be given by position
        for parameter in self.signature.parameters.values():
            if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                continue
            by_position = parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (bool(rest) and parameter.kind in _BY_POSITION)
            if parameter.name in values:
                if not by_position:
                    kwargs[parameter.name] = values[parameter.name]
                    continue
                value = values[parameter.name]
            elif parameter.default is inspect.Parameter.empty:
                self._refuse_call(f"missing a required argument: {parameter.name!r}")
            elif not by_position:
                continue
            else:
                value = parameter.default
                gap = True
            args.append(value)
        if gap and not rest:
            # Defaults at the end need not be passed at all.
            while args and self._is_trailing_default(len(args) - 1, values):
                args.pop()
        return (*args, *rest), {**kwargs, **extra}

    def _is_trailing_default(self, index: int, values: dict[str, Any]) -> bool:
        return list(self.signature.parameters)[index] not in values

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            self._refuse_call(str(error), error)

    def _add_extra(self, bound: dict[str, Any], extra: dict[str, Any]) -> None:
        for name, item in extra.items():
            if name in self._codecs or name in self._filled:
                raise InvalidPayload(name, f"of **{self._extra.name} has the name of a parameter of {self.name}")  # type: ignore[union-attr]
            bound[name] = item

    def _refuse_call(self, problem: str, cause: Exception | None = None) -> typing.NoReturn:
        raise InvalidPayload("", f"do not fit {self.name}{self.signature}: {problem}") from cause

    def _invalid(self, refusal: Refusal, name: str) -> InvalidPayload:
        root = ""
        if self._extra is not None and name == self._extra.name:
            return InvalidPayload(refusal.path(root).lstrip(".") or name, refusal.problem, instead=refusal.instead)
        return InvalidPayload(refusal.path(name), refusal.problem, instead=refusal.instead)


class HasParameters(typing.Protocol):
    """What a task is to this module."""

    @property
    def parameters(self) -> Parameters:
        """The compiled parameters of the task's function."""


def encode_args(task: HasParameters, args: tuple[Any, ...], kwargs: Mapping[str, Any], max_bytes: int) -> str:
    """The arguments of a call as the text of one JSON object. Raises InvalidPayload."""
    return object_text(task.parameters.bind(args, kwargs), max_bytes)


def decode_args(task: HasParameters, data: str | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a stored object or its JSON text. Raises InvalidPayload naming the argument."""
    return task.parameters.call(parse_object(data) if isinstance(data, str) else data)


def object_text(bound: dict[str, Any], max_bytes: int) -> str:
    """Bound arguments as JSON text. Raises InvalidPayload for text PostgreSQL cannot store, and above `max_bytes`."""
    try:
        text, size = jsonvalues.checked_text(bound)
        if size <= max_bytes:
            return text
    except Refusal as refusal:
        raise InvalidPayload(refusal.path("").lstrip("."), refusal.problem, instead=refusal.instead) from None
    largest = max(bound, key=lambda name: len(jsonvalues.to_text(bound[name])), default="")
    raise InvalidPayload(
        largest,
        f"makes the arguments {size:,} bytes of JSON; the limit is {max_bytes:,}",
        instead="store the data and pass its id or path, or raise max_payload_bytes (JOBRUNNER_MAX_PAYLOAD_BYTES)",
    )


def unique_key(bound: dict[str, Any]) -> str:
    """A key that equal arguments share: the SHA-256 of their JSON with sorted names."""
    return hashlib.sha256(jsonvalues.to_canonical_text(bound).encode()).hexdigest()


def encode_meta(meta: Mapping[str, Any]) -> str:
    """The `meta` option as JSON text. Raises InvalidPayload."""
    try:
        return jsonvalues.checked_text(jsonvalues.plain_members(meta, 0, rich=True))[0]
    except Refusal as refusal:
        raise InvalidPayload(refusal.path("meta"), refusal.problem, instead=refusal.instead) from None


def encode_result(value: object, max_bytes: int) -> str:
    """A return value as JSON text, by what it is: dates as text, dataclasses as objects, sets as lists.

    Raises:
        UnstorableResult: naming the `return value`; whatever the value does while it is read, nothing else is raised. The message itself
            says what to return instead: of an error in a worker the message is all that is kept.
    """
    raising = "or raise max_result_bytes (JOBRUNNER_MAX_RESULT_BYTES)"
    large = f"store the data in a table or a file and return its id or path, {raising}"
    try:
        return _encoded(value, max_bytes, RETURN_VALUE, "return", large)
    except InvalidPayload as error:
        raise UnstorableResult(error.argument, error.problem) from error.__cause__


def encode_checkpoint(value: object, max_bytes: int) -> str:
    """A checkpoint as JSON text, as `encode_result` does it. Raises InvalidPayload naming the `checkpoint`."""
    return _encoded(value, max_bytes, CHECKPOINT, "keep", "store the data and keep its id")


def _encoded(value: object, max_bytes: int, what: str, verb: str, instead_of_large: str) -> str:
    try:
        text, size = jsonvalues.checked_text(jsonvalues.plain(value, rich=True))
    except Refusal as refusal:
        instead = refusal.instead.replace("annotate the parameter, ", "").replace("pass ", f"{verb} ").replace("passing", f"{verb}ing")
        raise InvalidPayload(refusal.path(what), _with_advice(refusal.problem, instead)) from None
    except Exception as error:
        raise InvalidPayload(what, _with_advice(f"cannot be read: {type(error).__name__}", f"{verb} plain data")) from error
    if size > max_bytes:
        raise InvalidPayload(what, _with_advice(f"is {size:,} bytes of JSON; the limit is {max_bytes:,}", instead_of_large))
    return text


def _with_advice(problem: str, instead: str) -> str:
    return f"{problem}: {instead}" if instead else problem


def decode_result(annotation: Any, value: Any) -> Any:
    """A stored return value by the task's return annotation. Raises InvalidPayload when it does not fit."""
    try:
        return _results.compile(annotation).decode(value)
    except Refusal as refusal:
        raise InvalidPayload(refusal.path(RETURN_VALUE), refusal.problem, instead=refusal.instead) from refusal.__cause__


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, as typed by a person. Raises InvalidPayload."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload("", f"are not JSON: {error}", instead="""a JSON object such as '{"user_id": 42}'""") from None
    if not isinstance(data, dict):
        raise InvalidPayload("", "must be one JSON object, keyed by parameter name", instead="""such as '{"user_id": 42}'""")
    return data


def _whole(parameter: inspect.Parameter, hint: Any) -> Any:
    """The annotation of everything that `*args` or `**kwargs` collect."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple[hint, ...]
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        unpacked = typing.get_origin(hint) is typing.Unpack
        return typing.get_args(hint)[0] if unpacked else dict[str, hint]
    return hint


def _hints(function: Callable[..., Any], signature: inspect.Signature) -> tuple[dict[str, Any], dict[str, str]]:
    """Resolved annotations, and the text of those that nobody can resolve (a name imported under TYPE_CHECKING only)."""
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function), {}
    except Exception:  # noqa: BLE001, S110  an annotation is any expression; one that fails leaves the others usable, see below
        pass
    hints: dict[str, Any] = {}
    unresolved: dict[str, str] = {}
    annotations = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    for name, annotation in {**annotations, "return": signature.return_annotation}.items():
        if annotation is inspect.Signature.empty:
            continue
        holder = type("holder", (), {"__annotations__": {name: annotation}})
        try:
            hints[name] = typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}))[name]
        except Exception:  # noqa: BLE001
            unresolved[name] = str(annotation)
    return hints, unresolved
