"""Owns how another process finds the application that this one serves: what to import, which database, which queues.

It must not start anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import site
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.allowing import name_of_file
from jobrunner.errors import ConfigurationError
from jobrunner.hosting.setting import NEVER
from jobrunner.settings import DEFAULT_QUEUE

if TYPE_CHECKING:
    from flask import Flask

    from jobrunner.app import JobRunner
    from jobrunner.hosting.setting import Setting

_MAIN = "__main__"
_KEY_LENGTH = 16
# Of a development server's own: they would make a worker take itself for the reloader's child.
_OF_THE_SERVER = ("WERKZEUG_RUN_MAIN", "WERKZEUG_SERVER_FD")


def find_address(app: Flask, known: str | None) -> str:
    """The address of the application, as `jobrunner --app` takes it.

    `JOBRUNNER_APP`; else the module that holds this very app; else what the server was told to call; else the module that the app is
    named after, with its factory.

    Args:
        app: the one that is served.
        known: what the server or `flask --app` was given, if that is known.

    Raises:
        ConfigurationError: the app was made at a prompt.
    """
    if named := os.environ.get("JOBRUNNER_APP", "").strip():
        return named
    names = list(sys.modules)  # in one step: other threads may be importing
    names.sort(key=lambda name: name != app.import_name)
    for name in names:
        if (attribute := _attribute_of(name, app)) is not None:
            return f"{_place(name)}:{attribute}"
    if known:
        return known
    if app.import_name in sys.modules:
        return _place(app.import_name)
    raise _nowhere(app)


def _attribute_of(name: str, app: Flask) -> str | None:
    """Under which name a module holds an app. By identity: a module may hold stand-ins that no question may be put to."""
    if name.partition(".")[0] == "jobrunner":
        return None
    values: dict[str, Any] = dict(getattr(sys.modules.get(name), "__dict__", None) or {})
    return next((attribute for attribute, value in values.items() if value is app and attribute.isidentifier()), None)


def _place(name: str) -> str:
    """A module, as a process in this working directory can import it: by its name, or by its file when that is elsewhere.

    By its file only where it has the same name then: rows name functions by their module, and the worker would refuse those of another.
    """
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    if name == _MAIN:
        if not file or not str(file).endswith(".py"):
            raise ConfigurationError("the program that serves this app is no Python file", hint="set JOBRUNNER_APP to where the app is")
        spec = getattr(module, "__spec__", None)
        if spec is None:
            return str(Path(file).resolve())
        name = spec.name  # of `python -m`
    if not file or not str(file).endswith(".py"):
        return name
    missing = _missing(name, file)
    if missing is None or (missing and name_of_file(Path(file)) != name):
        return name  # `root_of` is what is missing
    return str(Path(file).absolute())


def _root(name: str, file: str) -> Path | None:
    """The directory from which a file is imported under this name; None when it came in another way."""
    path = Path(file).absolute()
    parts = [*name.split("."), *(["__init__"] if path.stem == "__init__" else [])]
    return path.parents[len(parts) - 1] if [*path.parts[-len(parts) : -1], path.stem] == parts else None


def _missing(name: str, file: str) -> str | None:
    """What a worker in this working directory does not have on its path and needs there to import the file by this name.

    None when it has all; empty when no directory would do.
    """
    root = _root(name, file)
    given = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]  # which the worker inherits
    installed = (*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib"))
    known = {Path.cwd(), *(Path(place).resolve() for place in (*given, *installed))}
    return None if root is not None and root.resolve() in known else str(root or "")


def root_of(where: str) -> str | None:
    """From which directory a worker has to import the application besides: the server may have found it by other ways. None for none.

    Args:
        where: as `find_address` gives it.
    """
    name = where.partition(":")[0]
    main = getattr(sys.modules.get(_MAIN), "__spec__", None)
    module = sys.modules.get(_MAIN if main is not None and main.name == name else name)
    file = getattr(module, "__file__", None)
    return (_missing(name, file) or None) if file and str(file).endswith(".py") else None


def environment(jobs: JobRunner) -> dict[str, str]:
    """Of the worker: the server's, with the databases that the server has found, and nothing that would start a second one there."""
    env = {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVER}
    dsn = jobs.configured_dsn()
    if dsn is not None:
        env["JOBRUNNER_DSN"] = dsn.url
    # The last: an `app.run()` without `if __name__ == "__main__"` does nothing then, as under `flask run`.
    return env | jobs.routing.environment() | {NEVER: "1", "FLASK_RUN_FROM_CLI": "true"}


def queues(jobs: JobRunner, setting: Setting) -> str:
    """Which queues the worker serves: those of the setting, else those of tasks and executors, those with a route, and the default one."""
    if setting.queues:
        return setting.queues
    routes = jobs.routing.routes
    named = dict.fromkeys([DEFAULT_QUEUE, *jobs.queue_names(), *routes])
    somewhere = jobs.configured_dsn() is not None or not jobs.routing.databases
    return ",".join(queue for queue in named if somewhere or queue in routes)


def key(app: Flask, jobs: JobRunner, setting: Setting, known: str | None = None) -> str:
    """What two processes have in common that need only one worker: the app, where it is, its databases, and how it is to be run.

    Two apps of one module, or of one factory with other arguments, differ in their address alone.

    Args:
        app, known: as for `find_address`.
        jobs: the app's.
        setting: of the worker.

    Raises:
        ConfigurationError: nobody knows where the app is; that may come to be known.
    """
    dsn = jobs.configured_dsn()
    where = find_address(app, known)
    parts = [
        os.geteuid(), str(Path.cwd()), app.import_name, app.root_path, where, jobs.name or "", str(setting), dsn.url if dsn else "",
        jobs.routing.environment(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_LENGTH]


def _nowhere(app: Flask) -> ConfigurationError:
    return ConfigurationError(
        f"no module holds the app {app.import_name!r}, so that an embedded worker could import it", hint="set JOBRUNNER_APP=module:app"
    )
