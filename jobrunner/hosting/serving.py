"""Owns telling whether this process serves requests: by what a server puts into a request, by gunicorn's worker, by Werkzeug's loop.

It must not guess from what is absent: a shell, a migration and a test have no server either, and nothing may start there.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_GUNICORN = "gunicorn.workers.base"  # imported by every gunicorn, in the master too, and by nothing else
_WERKZEUG = "werkzeug.serving"
_OTHERS = ("uwsgi.", "mod_wsgi.")  # these name themselves in keys of their own


def is_served(environ: Mapping[str, Any]) -> bool:
    """Whether a WSGI server that stays made this request. Test clients name no server and have no `wsgi.file_wrapper`.

    False as well where each request has a process of its own (CGI, Werkzeug's `processes=`): there is nobody to stay with.
    """
    software = str(environ.get("SERVER_SOFTWARE") or "")
    if environ.get("wsgi.run_once") or (software.startswith("Werkzeug/") and environ.get("wsgi.multiprocess")):
        return False
    return bool(software) or "wsgi.file_wrapper" in environ or any(key.startswith(_OTHERS) for key in environ)


def is_tested() -> bool:
    """Whether this process is a run of pytest. Both signs: a server that a test starts inherits the variable, an app may import pytest."""
    return "pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ


def gunicorn_worker() -> Any:
    """The gunicorn worker that is about to serve, while it loads the application or has just been forked; else None."""
    base = sys.modules.get(_GUNICORN)
    frame = inspect.currentframe()
    while base is not None and frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("gunicorn."):
            for name in ("self", "worker"):
                found = frame.f_locals.get(name)
                if isinstance(found, base.Worker):
                    return None if found.booted else found
        frame = frame.f_back
    return None


def accompany(worker: Any, begin: Callable[..., None], leave: Callable[..., None]) -> None:
    """Call `begin` when a gunicorn worker begins to serve, and `leave` when it has ended.

    Both are given `beat`, gunicorn's sign of life: it kills a worker that gives none for `--timeout`. A worker that leaves only to make
    room for a fresh one (`--max-requests`), or that was found hanging, must not be held up: it is told `wait=False`.
    """
    run = worker.run  # the main loop, which every kind of worker has under this name

    def accompanied() -> None:
        begin(beat=worker.notify)
        try:
            run()
        finally:
            # Asked here and not in an `except`: a second signal that came with the first one raises once more on the way there.
            leave(wait=_may_wait(worker, sys.exc_info()[1]), beat=worker.notify)

    worker.run = accompanied


def _may_wait(worker: Any, leaving: BaseException | None) -> bool:
    """Whether a gunicorn worker that leaves so may take its time."""
    if leaving is None:
        return bool(worker.nr < worker.max_requests)
    return isinstance(leaving, SystemExit) and not leaving.code


def watch_werkzeug(notice: Callable[[Any], None]) -> None:
    """Have Werkzeug's development servers in this process call `notice`, with the server, now and then while they serve. Once for all.

    `service_actions` is where the standard library's servers leave room for that in their loop. The reloader's parent has no loop.
    """
    servers = getattr(sys.modules.get(_WERKZEUG), "BaseWSGIServer", None)
    if servers is None or "service_actions" in vars(servers):
        return
    inherited = servers.service_actions

    def service_actions(server: Any) -> None:
        inherited(server)
        notice(server)

    servers.service_actions = service_actions


def served_by(server: Any) -> tuple[Any, ...]:
    """What a server of Werkzeug serves: an application, and what is wrapped in its debugger. Nothing where each request has a process."""
    return () if server.multiprocess else (server.app, getattr(server.app, "app", None))


def factory_of(worker: Any) -> str | None:
    """What gunicorn was told to serve, such as `shop:create_app()`, when that is a call: then no module holds the application."""
    address = getattr(getattr(worker, "app", None), "app_uri", None)
    return str(address) if address and str(address).endswith(")") else None
