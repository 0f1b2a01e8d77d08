"""Owns how tasks look to a type checker: what `@app.task` and `@shared_task` make has the parameters and the return type of the function.

It must not do anything at run time: the decorators make objects of subclasses of `Task`, and never one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from jobrunner.compat.celery.app.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.compat.celery.result import AsyncResult

P = ParamSpec("P")
R = TypeVar("R")


class TaskOf(Task, Generic[P, R]):
    """A task that was made of a function."""

    if TYPE_CHECKING:

        def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """The function."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """Run it here and now."""

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
            """Send it."""

        def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
            """Send it in the transaction of the application's session."""

        def __getattr__(self, name: str) -> Any:
            """What a base class of the application's own has: which one it is cannot be seen here."""


class Decorator(Protocol):
    """What `@app.task(…)` gives."""

    def __call__(self, function: Callable[P, R], /) -> TaskOf[P, R]:
        """Make the function a task."""


class BoundDecorator(Protocol):
    """What `@app.task(bind=True, …)` gives: whoever calls the task does not give the first argument."""

    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> TaskOf[P, R]:
        """Make the function a task."""
