"""Owns where a task goes: `task_routes`, `task_queues` and routing keys become the name of a queue.

It must not send anything, nor need kombu: a `Queue` of it is read by its attributes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.compat.celery.exceptions import QueueNotFound
from jobrunner.compat.celery.settings import symbol_by_name

if TYPE_CHECKING:
    from jobrunner.compat.celery.settings import Settings

_Route = Callable[..., Any]


class QueueOf(NamedTuple):
    """One queue of `task_queues`."""

    name: str
    routing_key: str | None = None


class MapRoute:
    """A route made of a mapping from names, globs or regular expressions to a queue or to options."""

    def __init__(self, routes: Any) -> None:
        self.names: dict[str, Any] = {}
        self.patterns: list[tuple[re.Pattern[str], Any]] = []
        for name, route in routes.items() if isinstance(routes, Mapping) else routes:
            if isinstance(name, re.Pattern):
                self.patterns.append((name, route))
            elif "*" in name:
                self.patterns.append((re.compile(fnmatch.translate(name)), route))
            else:
                self.names[name] = route

    def __call__(self, name: str, *_args: Any, **_kwargs: Any) -> dict[str, Any] | None:
        """The options for that task, or None."""
        if name in self.names:
            return _options(self.names[name])
        return next((_options(route) for pattern, route in self.patterns if pattern.match(name)), None)


class Router:
    """Decides for each call which queue it goes to.

    Args:
        conf: the app's settings, read at each call: tests and factories change them late.
    """

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self._prepared: tuple[Any, list[_Route]] = (None, [])

    def queues(self) -> dict[str, QueueOf]:
        """The queues of `task_queues`, else the default one."""
        given = self._conf["task_queues"]
        if not given:
            return {str(self._conf["task_default_queue"]): QueueOf(str(self._conf["task_default_queue"]))}
        if isinstance(given, Mapping):
            return {name: QueueOf(name, (options or {}).get("routing_key")) for name, options in given.items()}
        found = [one if isinstance(one, str) else (one.name, getattr(one, "routing_key", None) or None) for one in given]
        return {one.name: one for one in (QueueOf(one) if isinstance(one, str) else QueueOf(*one) for one in found)}

    def route(self, options: dict[str, Any], name: str, args: Any = (), kwargs: Any = None, task: Any = None) -> dict[str, Any]:
        """The options of a call with its route's added, where the call does not say otherwise; `queue` is a name in them.

        Raises:
            QueueNotFound: the queue is not in `task_queues`, and `task_create_missing_queues` is off.
        """
        given = {key: value for key, value in options.items() if value is not None}
        chosen = {**(self._lookup(name, args, kwargs or {}, options, task) or {}), **given}
        chosen["queue"] = self._queue(chosen)
        return {**options, **chosen}

    def _queue(self, options: Mapping[str, Any]) -> str:
        queue = options.get("queue")
        if queue is None:
            return self._by_key(options) or str(self._conf["task_default_queue"])
        name = str(getattr(queue, "name", queue))
        if not self._conf["task_create_missing_queues"] and name not in self.queues():
            raise QueueNotFound(f"Queue {name!r} missing from task_queues")
        return name

    def _by_key(self, options: Mapping[str, Any]) -> str | None:
        """The queue that a routing key stands for: that of `task_queues`, or of that name where the default exchange was meant."""
        key = options.get("routing_key")
        if not key:
            return None
        for queue in self.queues().values():
            if key in {queue.routing_key, queue.name}:
                return queue.name
        return str(key) if options.get("exchange") == "" else None

    def _lookup(self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any) -> dict[str, Any] | None:
        routes = self._conf["task_routes"]
        if routes is not self._prepared[0]:
            self._prepared = routes, prepare(routes)
        for route in self._prepared[1]:
            found = route(name, args, kwargs, options, task=task)
            if found is not None:
                return _options(found)
        return None


def prepare(routes: Any) -> list[_Route]:
    """The functions that `task_routes` stands for."""
    if routes is None:
        return []
    return [_prepared(route) for route in (routes if isinstance(routes, (list, tuple)) else (routes,))]


def _prepared(route: Any) -> _Route:
    if isinstance(route, (Mapping, list, tuple)):
        return MapRoute(route)
    found = symbol_by_name(route)
    if isinstance(found, type):
        found = found()
    old: Callable[..., Any] | None = getattr(found, "route_for_task", None)
    if old is not None:
        return lambda name, args, kwargs, _options, task=None: old(name, args, kwargs)  # noqa: ARG005
    return found  # type: ignore[no-any-return]


def _options(route: Any) -> dict[str, Any]:
    """A route is a queue (by name, or kombu's) or options."""
    return dict(route) if isinstance(route, (Mapping, list, tuple)) else {"queue": route}
