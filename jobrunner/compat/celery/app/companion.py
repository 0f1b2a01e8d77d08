"""Owns what a Celery app does when the processes of its JobRunner's workers begin and end, and the import of its task modules.

It must not decide what those processes do.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery import signals

if TYPE_CHECKING:
    from jobrunner.compat.celery.app.base import Celery


class CeleryCompanion:
    """What the app does when the JobRunner's processes begin and end; see `jobrunner.lifecycle`."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def loaded(self) -> None:
        """Import the app's modules."""
        self._app.import_modules()

    def worker_began(self) -> None:
        """Set up logging, say what becomes of the configuration, send the signals of the worker."""
        from jobrunner.compat.celery import worker

        worker.began(self._app)

    def worker_ended(self) -> None:
        """Send the last of them."""
        from jobrunner.compat.celery import worker

        signals.worker_shutdown.send(sender=worker.instance_of(self._app))

    def process_began(self) -> None:
        """Have what it prints logged, and send the signals of a child."""
        from jobrunner.compat.celery import worker

        worker.redirect_streams(self._app)
        self._app.on_after_fork.send(sender=self._app)
        signals.worker_process_init.send(sender=None)

    def process_ended(self, code: int) -> None:
        """Send the signal of its end."""
        signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=code)


def import_modules(app: Celery) -> None:
    """Import what the app's settings and `autodiscover_tasks` name, and make all tasks."""
    app.set_current()
    app.set_default()
    app.conf.load()
    for _, response in signals.import_modules.send(sender=app):
        if isinstance(response, Exception):
            raise response  # else a worker would start without the tasks of that module, and they would wait for ever
    for setting in ("imports", "include"):
        names = app.conf[setting] or ()
        for name in (names,) if isinstance(names, str) else names:
            importlib.import_module(name)
    app.finalize()


def autodiscover(app: Celery, packages: Any, related_name: str | None, *, force: bool) -> None:
    """What `Celery.autodiscover_tasks` does."""

    def discover(**_: Any) -> None:
        for package in (packages() if callable(packages) else packages) or ():
            _import_related(package, related_name)

    if force:
        discover()
    else:
        signals.import_modules.connect(discover, sender=app, weak=False)


def _import_related(package: str, related_name: str | None) -> None:
    """Import a package and, when it has one, its module of that name. What such a module fails to import is an error."""
    importlib.import_module(package)
    if not related_name:
        return
    name = f"{package}.{related_name}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the module is there, and what it imports is not
            raise


