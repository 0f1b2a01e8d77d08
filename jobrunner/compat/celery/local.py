"""Owns the stand-ins for what is not there yet: the current app, the current task, a task whose app is not set up.

It must not keep what it stands for, but for `PromiseProxy`, which looks once.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_set = object.__setattr__
_get = object.__getattribute__


class Proxy:
    """Whatever a function returns at this moment, under one name.

    Args:
        find: asked each time something is done with the proxy.
        args, kwargs: what it is called with.
        name, doc: shown before it can be asked.
    """

    __slots__ = ("__dict__", "__weakref__", "_args", "_find", "_kwargs", "_name")

    def __init__(
        self,
        find: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        name: str = "",
        doc: str | None = None,
    ) -> None:
        for slot, value in (("_find", find), ("_args", args), ("_kwargs", kwargs or {}), ("_name", name)):
            _set(self, slot, value)
        _get(self, "__dict__")["__doc__"] = doc  # there it goes before that of the class

    def _get_current_object(self) -> Any:
        """What the proxy stands for."""
        return _get(self, "_find")(*_get(self, "_args"), **_get(self, "_kwargs"))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        try:
            return self._get_current_object().__class__
        except Exception:  # noqa: BLE001  whoever looks through a module asks this of everything in it
            return Proxy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._get_current_object(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self._get_current_object()(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._get_current_object())

    def __str__(self) -> str:
        return str(self._get_current_object())

    def __bool__(self) -> bool:
        return bool(self._get_current_object())

    def __dir__(self) -> list[str]:
        return dir(self._get_current_object())

    def __hash__(self) -> int:
        return hash(self._get_current_object())

    def __eq__(self, other: object) -> bool:
        return bool(self._get_current_object() == _real(other))

    def __getitem__(self, key: Any) -> Any:
        return self._get_current_object()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._get_current_object()[key] = value

    def __contains__(self, key: Any) -> bool:
        return key in self._get_current_object()

    def __iter__(self) -> Any:
        return iter(self._get_current_object())

    def __len__(self) -> int:
        return len(self._get_current_object())

    def __or__(self, other: Any) -> Any:
        return operator.or_(self._get_current_object(), other)

    def __reduce__(self) -> Any:
        return self._get_current_object().__reduce__()


class PromiseProxy(Proxy):
    """What a function returns the first time that it is asked: a task whose decorator ran before its app was set up."""

    __slots__ = ()

    def _get_current_object(self) -> Any:
        """What the proxy stands for; made now if it was not yet."""
        kept = _get(self, "__dict__")
        if "made" not in kept:
            kept["made"] = super()._get_current_object()
            for callback in kept.pop("then", ()):
                callback()
        return kept["made"]

    def __evaluated__(self) -> bool:
        """Whether it has been made."""
        return "made" in _get(self, "__dict__")

    def __then__(self, callback: Callable[[], Any]) -> None:
        """Call back when it has been made; at once, when it has been already."""
        if self.__evaluated__():
            callback()
        else:
            _get(self, "__dict__").setdefault("then", []).append(callback)

    def __maybe_evaluate__(self) -> Any:
        """Make it now."""
        return self._get_current_object()


def maybe_evaluate(value: Any) -> Any:
    """What a proxy stands for; anything else as it is."""
    return _real(value)


def _real(value: Any) -> Any:
    find = getattr(type(value), "_get_current_object", None)
    return value if find is None else find(value)
