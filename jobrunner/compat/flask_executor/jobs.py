"""Owns the executor over jobs that a Flask application gets: which functions it may call, and what goes along with a call.

It must not know keys nor proxies of futures.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobrunner.allowing import main_name
from jobrunner.compat.flask_executor import contexts
from jobrunner.compat.futures import JobExecutor
from jobrunner.settings import DEFAULT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.app import JobRunner
    from jobrunner.compat.jobfutures import JobFuture
    from jobrunner.database import Database


class FlaskJobExecutor(JobExecutor):
    """A `JobExecutor` for the functions of a Flask application.

    Args:
        jobs: with a Flask app.
        max_workers: kept for those who look at it.
        name: of the queue, or empty for the default one.
        capture: what goes along; see `contexts.captured`.
        options: of the jobs.
    """

    def __init__(self, jobs: JobRunner, max_workers: int | None, name: str, capture: tuple[str, ...], options: Mapping[str, Any]) -> None:
        super().__init__(jobs, max_workers, allowed_modules=_modules_of(jobs.app), **{"queue": name or DEFAULT_QUEUE, **options})
        self._capture = capture
        jobs.calls.restore = contexts.restore

    def register(self, function: Callable[..., Any]) -> None:
        """Allow a decorated function, wherever it is defined."""
        self._calls.allowed.register(function)

    def database(self) -> Database:
        """Where the jobs of the queue are."""
        return self._home.database

    def submit_stored(
        self, reference: tuple[str, str], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> JobFuture[Any]:
        """Write a job and its reference by one statement. Raises DuplicateReference."""
        return self._submit(fn, args, kwargs, reference=reference)

    def _context(self) -> Mapping[str, Any] | None:
        return contexts.captured(self._capture, self._calls.values) if self._capture else None


def _modules_of(app: Any) -> tuple[str, ...]:
    """The module that Flask knows the application by, and what is inside when it is a package."""
    name = app.import_name
    if name == "__main__":
        name = main_name() or name
    if not all(part.isidentifier() for part in name.split(".")):  # Flask takes any text
        return ()
    return (name, f"{name}.*") if hasattr(sys.modules.get(name), "__path__") else (name,)
