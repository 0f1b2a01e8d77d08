"""Owns `Signal`: receivers that are called when something happens.

It must not let the error of one receiver reach the sender or the other receivers: it is logged.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery.local import PromiseProxy

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

logger = logging.getLogger(__name__)

_NO_SENDER = 0


class Signal:
    """A happening to which receivers connect; each gets `signal`, `sender` and the arguments of `send` by keyword.

    Args:
        providing_args: names of the arguments, for the reader.
        name: shown by `repr`.
        use_caching: taken for compatibility; nothing is cached.
    """

    def __init__(self, providing_args: Iterable[str] | None = None, use_caching: bool = False, name: str | None = None) -> None:  # noqa: FBT001, FBT002
        self.providing_args = set(providing_args or ())
        self.use_caching, self.name = use_caching, name
        self._receivers: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    @property
    def receivers(self) -> list[tuple[Hashable, Any]]:
        """Keys and (weak) receivers, in the order in which they connected."""
        return list(self._receivers.items())

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Add a receiver; as a call, or as a decorator with or without arguments.

        Args:
            *args: the receiver, which must take keyword arguments; then the options by position.
            **kwargs: `sender` (only its signals), `weak` (True: a receiver that nobody else holds is forgotten), `dispatch_uid` (a second
                receiver with the same one is not added), `retry` (taken for compatibility).

        Raises:
            ValueError: the receiver does not take keyword arguments.
        """
        if args and callable(args[0]):
            return self._connect(*args, **kwargs)
        return lambda receiver: self._connect(receiver, *args, **kwargs)

    def _connect(self, receiver: Any, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        if not _takes_keywords(receiver):
            raise ValueError("Signal receiver must accept keyword arguments.")
        if issubclass(type(sender), PromiseProxy) and not sender.__evaluated__():
            # A task whose app is not set up: to make it now would fix its options before the settings are there.
            sender.__then__(functools.partial(self._connect, receiver, sender, weak, dispatch_uid))
            return receiver
        key = self._key(receiver, sender, dispatch_uid)
        with self._lock:
            known = self._receivers.get(key)
            if known is None or (isinstance(known, weakref.ref) and known() is None):  # a dead receiver's id may be another's by now
                self._receivers[key] = _weak(receiver) if weak else receiver
        return receiver

    def disconnect(self, receiver: Any = None, sender: Any = None, weak: Any = None, dispatch_uid: Any = None) -> bool:  # noqa: ARG002
        """Remove a receiver, given as it was connected. Returns whether it was there."""
        with self._lock:
            return self._receivers.pop(self._key(receiver, sender, dispatch_uid), None) is not None

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether anybody would hear that sender."""
        return bool(self._live(sender))

    def send(self, sender: Any, **named: Any) -> list[tuple[Any, Any]]:
        """Call every receiver. Returns pairs of the receiver and what it returned, or the exception that it raised."""
        responses: list[tuple[Any, Any]] = []
        for receiver in self._live(sender):
            try:
                response = receiver(signal=self, sender=sender, **named)
            except Exception as error:
                logger.exception("Signal handler %r raised: %r", receiver, error)  # noqa: TRY401  the line that people look for
                response = error
            responses.append((receiver, response))
        return responses

    send_robust = send

    def _live(self, sender: Any) -> list[Any]:
        wanted = {_NO_SENDER, _identity(sender)} if sender is not None else {_NO_SENDER}
        found: list[Any] = []
        for key, held in self.receivers:
            if key[1] not in wanted:  # type: ignore[index]
                continue
            receiver = held() if isinstance(held, weakref.ref) else held
            if receiver is None:
                with self._lock:
                    self._receivers.pop(key, None)
            else:
                found.append(receiver)
        return found

    def _key(self, receiver: Any, sender: Any, dispatch_uid: Any) -> tuple[Hashable, Hashable]:
        return dispatch_uid or _identity(receiver), _NO_SENDER if sender is None else _identity(sender)

    def __repr__(self) -> str:
        return f"<Signal: {self.name} providing_args={sorted(self.providing_args)!r}>"


def _identity(target: Any) -> Hashable:
    if isinstance(target, (str, bytes)):
        return target  # a task by its name
    current = getattr(type(target), "_get_current_object", None)
    target = current(target) if current is not None else target
    if inspect.ismethod(target):
        return id(target.__self__), id(target.__func__)
    return id(target)


def _weak(receiver: Any) -> Any:
    return weakref.WeakMethod(receiver) if inspect.ismethod(receiver) else weakref.ref(receiver)


def _takes_keywords(receiver: Any) -> bool:
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):  # written in C, without a signature: it will say so itself
        return True
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
