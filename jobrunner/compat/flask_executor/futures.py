"""Owns futures as Flask-Executor gives them out, and the collection in which they are found by key within this process.

It must not know where the calls run; `stored` has the collection that all processes share.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from jobrunner.compat.flask_executor.helpers import InstanceProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from jobrunner.compat.flask_executor.executor import Executor

MAX_LENGTH = 50  # futures that a collection keeps unless told otherwise, as Flask-Executor does


class FutureCollection:
    """Futures by key. Every method and attribute of a future is one of the collection, with the key as its first argument.

    `futures.done("report")`, `futures.result("report", timeout=5)`, `futures._state("report")`; None for a key that is not there.

    Args:
        max_length: futures that are kept; the oldest are dropped first. None keeps all.
    """

    _futures: Mapping[Any, Future[Any]]

    def __init__(self, max_length: int | None = MAX_LENGTH) -> None:
        self.max_length = max_length
        self._futures = OrderedDict()

    def __contains__(self, future: object) -> bool:
        return future in self._futures.values()

    def __len__(self) -> int:
        return len(self._futures)

    def __getattr__(self, attr: str) -> Callable[..., Any]:
        if attr == "_futures":  # not made yet: a copy, or somebody who derives from this class
            raise AttributeError(attr)

        def of_future(future_key: Hashable, *args: Any, **kwargs: Any) -> Any:
            future = self._futures.get(future_key)
            if future is None:
                return None
            found = getattr(future, attr)
            return found(*args, **kwargs) if callable(found) else found

        return of_future

    def add(self, future_key: Hashable, future: Future[Any]) -> None:
        """Keep a future; old ones may be dropped for it.

        Raises:
            ValueError: there is one with that key.
        """
        kept = self._kept()
        self.check_free(future_key)
        kept[future_key] = future
        if self.max_length is not None:
            while len(kept) > self.max_length:
                kept.popitem(last=False)

    def pop(self, future_key: Hashable) -> Future[Any] | None:
        """Take a future out, or None when there is none with that key."""
        return self._kept().pop(future_key, None)

    def check_free(self, future_key: Hashable) -> None:
        """Raises ValueError when there is a future with that key."""
        if future_key in self._futures:
            raise ValueError(f"future_key {future_key} already exists")

    def _kept(self) -> OrderedDict[Any, Future[Any]]:
        return self._futures  # type: ignore[return-value]  # of this class it is one


class FutureProxy(InstanceProxy, Future[Any]):
    """A future that runs its callbacks with copies of the contexts in which they were added; equal to the one that it stands for."""

    def __init__(self, future: Future[Any], executor: Executor) -> None:
        super().__init__(future)
        self._executor = executor

    def add_done_callback(self, fn: Callable[[Future[Any]], Any]) -> None:
        """Call `fn` once the future is done: in an app context, and with the request if one is handled now."""
        self._self.add_done_callback(self._executor._prepare_fn(fn, force_copy=True))  # noqa: SLF001  the name that Flask-Executor has

    def __eq__(self, other: object) -> bool:
        return bool(self._self == (other._self if isinstance(other, InstanceProxy) else other))

    def __hash__(self) -> int:
        return hash(self._self)
