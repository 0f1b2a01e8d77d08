"""Owns `InstanceProxy`, an object that passes for another one, and how Flask-Executor reads a flag of the configuration.

It must not know executors nor futures.
"""

from __future__ import annotations

from typing import Any, ClassVar

_TRUE = {"yes", "true", "t", "1"}


def str2bool(v: object) -> bool:
    """Whether a value of the configuration means yes: `True`, `"yes"`, `"true"`, `"t"`, `1`, in any case."""
    return str(v).lower() in _TRUE


class InstanceProxy:
    """Has the attributes that its classes and itself define, and for all others those of the object it stands for, its class included.

    Attributes:
        _self: that object; None before there is one.
    """

    _own_names: ClassVar[frozenset[str]] = frozenset()
    _self: Any

    def __init__(self, proxied_obj: Any) -> None:
        self._self = proxied_obj

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._own_names = _names_of(cls)

    def __getattribute__(self, attr: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        # type(), because `__class__` is the other object's.
        if attr in own or attr in type(self)._own_names or (target := own.get("_self")) is None:  # noqa: SLF001  its own
            return object.__getattribute__(self, attr)
        return getattr(target, attr)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}( {object.__getattribute__(self, '__dict__').get('_self')!r} )>"


def _names_of(kind: type) -> frozenset[str]:
    return frozenset(name for base in kind.__mro__ if issubclass(base, InstanceProxy) for name in vars(base))


InstanceProxy._own_names = _names_of(InstanceProxy)  # noqa: SLF001
