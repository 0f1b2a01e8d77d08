"""Owns `shared_task`, for modules that do not know their app, and `app_or_default`.

It must not make an app before one is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from jobrunner.compat.celery import _state
from jobrunner.compat.celery.app.base import Celery
from jobrunner.compat.celery.app.task import Task
from jobrunner.compat.celery.local import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.compat.celery.app.typed import BoundDecorator, Decorator, P, R, TaskOf

__all__ = ["Celery", "Task", "app_or_default", "shared_task"]


def app_or_default(app: Celery | None = None) -> Celery:
    """That app, or the current one."""
    return app or _state.get_current_app()


@overload
def shared_task(function: Callable[P, R], /) -> TaskOf[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], **opts: Any) -> BoundDecorator: ...
@overload
def shared_task(*, bind: Literal[False] = False, **opts: Any) -> Decorator: ...
@overload
def shared_task(*args: Any, **opts: Any) -> Any: ...
def shared_task(*args: Any, **kwargs: Any) -> Any:
    """Make a function a task of every app; what is returned stands for that of the current one. With or without parentheses."""

    def create(**options: Any) -> Any:
        def decorate(function: Any) -> Any:
            if type(function) is Proxy:  # it would be asked for its name below, and so for the task that is to be made of it
                raise TypeError("@shared_task was applied more than once to the same function: one is enough")
            name = options.get("name")
            _state.connect_on_app_finalize(lambda app: app._task_from_fun(function, **options))  # noqa: SLF001
            for app in _state.active_apps():
                if app.finalized:
                    app._task_from_fun(function, **options)  # noqa: SLF001

            def task_of_current_app() -> Task:
                app = _state.get_current_app()
                return app.tasks[name or app.gen_task_name(function.__name__, function.__module__)]  # type: ignore[no-any-return]

            return Proxy(task_of_current_app, doc=function.__doc__)

        return decorate

    if len(args) == 1 and callable(args[0]):
        return create(**kwargs)(args[0])
    return create(*args, **kwargs)
