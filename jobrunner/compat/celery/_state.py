"""Owns what is current: the app, the task and its request, and whether a wait for a result would block a worker.

It must not make apps nor tasks: they announce themselves here.
"""

from __future__ import annotations

import contextlib
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery.local import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jobrunner.compat.celery.app.base import Celery
    from jobrunner.compat.celery.app.task import Context, Task

_default_app: Celery | None = None
_current: ContextVar[Celery | None] = ContextVar("jobrunner_celery_app", default=None)
_stack: ContextVar[tuple[tuple[Task, Context], ...]] = ContextVar("jobrunner_celery_requests", default=())
_would_block: ContextVar[bool] = ContextVar("jobrunner_celery_would_block", default=False)
_apps: weakref.WeakSet[Celery] = weakref.WeakSet()
_on_finalize: dict[Callable[[Celery], Any], None] = {}  # a set that keeps its order: tasks are made in that of their decorators


def set_default_app(app: Celery | None) -> None:
    """Make an app the one for all threads that have none of their own."""
    global _default_app  # noqa: PLW0603  there is one default in a process; that is what it is
    _default_app = app


def set_current_app(app: Celery | None) -> None:
    """Make an app the current one here; the first app is everybody's default as well."""
    if _default_app is None:
        set_default_app(app)
    _current.set(app)


def get_current_app() -> Celery:
    """The app of this context, else the default one, else one that is made now and named `default`."""
    app = _current.get() or _default_app
    if app is None:
        from jobrunner.compat.celery.app.base import Celery

        app = Celery("default", set_as_current=False)
        set_default_app(app)
    return app


def register_app(app: Celery) -> None:
    """Note that an app exists: tasks shared later become its own."""
    _apps.add(app)


def deregister_app(app: Celery) -> None:
    """Forget an app."""
    _apps.discard(app)


def active_apps() -> list[Celery]:
    """All apps."""
    return list(_apps)


def connect_on_app_finalize(callback: Callable[[Celery], Any]) -> Callable[[Celery], Any]:
    """Call back for every app that is finalised from now on."""
    _on_finalize[callback] = None
    return callback


def announce_app_finalized(app: Celery) -> None:
    """Give an app the shared tasks."""
    for callback in list(_on_finalize):
        callback(app)


# -- the task that runs


@contextlib.contextmanager
def running(task: Task, request: Context) -> Iterator[None]:
    """Make a task and its request the current ones for the length of the block."""
    token = _stack.set((*_stack.get(), (task, request)))
    try:
        yield
    finally:
        _stack.reset(token)


def push_request(task: Task, request: Context) -> None:
    """The same without an end; for `Task.push_request`."""
    _stack.set((*_stack.get(), (task, request)))


def pop_request(task: Task) -> None:
    """Take back the newest request of a task."""
    stack = _stack.get()
    for index in range(len(stack) - 1, -1, -1):
        if stack[index][0] is task:
            _stack.set(stack[:index] + stack[index + 1 :])
            return


def request_of(task: Task) -> Context | None:
    """The newest request of a task."""
    return next((request for one, request in reversed(_stack.get()) if one is task), None)


def depth_of(task: Task) -> int:
    """How many requests of a task there are: above 1, it called itself."""
    return sum(1 for one, _ in _stack.get() if one is task)


def get_current_task() -> Task | None:
    """The task that runs here, called by a worker or directly."""
    stack = _stack.get()
    return stack[-1][0] if stack else None


def get_current_worker_task() -> Task | None:
    """The task that a worker (or `apply`) runs here; not one that it calls directly."""
    return next((task for task, request in reversed(_stack.get()) if not request.called_directly), None)


def get_current_worker_request() -> Context | None:
    """The request of that task."""
    return next((request for _, request in reversed(_stack.get()) if not request.called_directly), None)


# -- waiting


def task_join_will_block() -> bool:
    """Whether a wait for a result may be for ever: the tasks that would give it wait for this one's slot."""
    return _would_block.get()


@contextlib.contextmanager
def joining(*, blocks: bool) -> Iterator[None]:
    """Say so for the length of the block."""
    token = _would_block.set(blocks)
    try:
        yield
    finally:
        _would_block.reset(token)


current_app: Any = Proxy(get_current_app, name="current_app")
current_task: Any = Proxy(get_current_task, name="current_task")
