"""Owns what applications and results of Celery's have and these have not: each name says so, and what to do instead.

It must not hold anything that works.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jobrunner.compat.celery.exceptions import Unsupported
from jobrunner.compat.celery.options import NAMES

_WORKER = "run `jobrunner celery-worker -A module`"
_CONNECTIONS = "there is no broker; a message queue of its own is `jobs.queue(name)`"
_CHILDREN = "which task has called which is in the rows: parent_id of the view v_jobs"
_BOOTSTEPS = "there are no bootsteps; the signals of the worker are sent"


class UnsupportedAttribute(Unsupported, AttributeError):
    """The same for an attribute, so that `hasattr` says no."""


class _Attribute:
    """Raises UnsupportedAttribute when it is looked up; a subclass or an instance may have one of its own under the name."""

    def __init__(self, instead: str, of: str = "app") -> None:
        self._instead, self._of = instead, of

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, _owner: type | None = None) -> Any:
        if instance is None:  # of the class: who looks through it is to find all its names
            return self
        raise UnsupportedAttribute(f"{self._of}.{self._name}", self._instead)


def _method(what: str, instead: str) -> Any:
    def method(_self: Any, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise Unsupported(what, instead)

    method.__doc__ = "Raises Unsupported."
    return method


class Absent:
    """The part of an application that is not there."""

    start = worker_main = _method("a worker by app.start() or app.worker_main()", _WORKER)
    connection = connection_for_read = connection_for_write = broker_connection = _method("broker connections", _CONNECTIONS)
    connection_or_acquire = default_connection = producer_or_acquire = default_producer = connection

    Worker, WorkController = _Attribute(_WORKER), _Attribute(_WORKER)
    Beat = _Attribute(NAMES["add_periodic_task"].note)
    GroupResult, ResultSet = _Attribute(NAMES["group"].note), _Attribute(NAMES["group"].note)
    amqp, pool, producer_pool = _Attribute(_CONNECTIONS), _Attribute(_CONNECTIONS), _Attribute(_CONNECTIONS)
    steps, user_options = _Attribute(_BOOTSTEPS), _Attribute(_BOOTSTEPS)
    events = _Attribute("there are no event messages: the dashboard and the views read the rows")
    loader = _Attribute("there are no loaders; `app.import_modules()` imports what the configuration names")
    log = _Attribute("a worker sets up logging at its start; the signals of that are sent")
    select_queues = _Attribute("name the queues where the worker is started: -Q")
    setup_security = _Attribute("messages are not signed: who may write into the database is its business")
    bugreport = _Attribute("`jobrunner doctor` looks at what there is")
    config_from_cmdline = _method("app.config_from_cmdline()", "app.config_from_object() and app.conf take settings")


class AbsentOfResults:
    """The part of a result that is not there: the tree of its children."""

    collect = _method("AsyncResult.collect()", _CHILDREN)
    iterdeps = _method("AsyncResult.iterdeps()", _CHILDREN)
    get_leaf = _method("AsyncResult.get_leaf()", _CHILDREN)
    build_graph = _method("AsyncResult.build_graph()", _CHILDREN)
    graph = _Attribute(_CHILDREN, "AsyncResult")
