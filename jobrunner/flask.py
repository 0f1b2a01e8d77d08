"""Owns Jobrunner's side of Flask: the extension, its config keys, and `flask jobs`.

It must not import the command line or the worker before `flask jobs` is used. With `web`, it is the only module that imports Flask.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, cast

import click
from flask import Flask, current_app, has_app_context, request, request_started

from jobrunner.errors import ConfigurationError
from jobrunner.hosting.host import Host
from jobrunner.hosting.setting import find_grace
from jobrunner.settings import OFF_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.app import JobRunner

EXTENSION = "jobrunner"
_DOOR = "jobrunner-embedded-worker"


class _Jobs(click.Group):
    """`flask jobs`: stands for the group of `jobrunner`, which is imported when it is used."""

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        """The context of the real group: click then invokes that one, with its options, its errors and its exit codes."""
        # By name: the command line stands above this module and uses it.
        cli = cast("click.Group", importlib.import_module("jobrunner.cli").cli)
        return cli.make_context(info_name, args, parent, **extra)


jobs_group = _Jobs("jobs", help="Background jobs: the commands of `jobrunner` for this app.")


def init(app: Flask, jobs: JobRunner) -> None:
    """Connect an app and a JobRunner; what `JobRunner.init_app` does.

    Config keys: `JOBRUNNER_DSN` (else `SQLALCHEMY_DATABASE_URI`), `JOBRUNNER_MAX_PAYLOAD_BYTES`, `JOBRUNNER_MAX_RESULT_BYTES`,
    `JOBRUNNER_WAKEUPS`, `JOBRUNNER_EMBEDDED_WORKER`. The first two are read when the database is first used, so they may be set after
    this call; the last is read once more at the first request.

    Raises:
        ConfigurationError: the app has another JobRunner, or a value is malformed.
    """
    known = app.extensions.get(EXTENSION)
    if known is not None and known is not jobs:
        raise ConfigurationError(
            f"the Flask app {app.name!r} has a JobRunner already", hint="one JobRunner per app; import the one that is there"
        )
    jobs.find_sizes(app.config)
    if "JOBRUNNER_WAKEUPS" in app.config and not _truth(app.config["JOBRUNNER_WAKEUPS"]):
        jobs.wakeups = False
    app.extensions[EXTENSION] = jobs
    if jobs.app is not app:
        jobs.app = app
        jobs.close()  # another app, another database
    if jobs.find_embedded_worker() is not None:  # what is malformed is refused here rather than in a request
        find_grace(app.config, development=app.debug)
    if _DOOR not in app.extensions:
        app.extensions[_DOOR] = _Door(app, Host(app, jobs, _of_flask_cli()))
    app.cli.add_command(jobs_group)
    os.register_at_fork(after_in_child=functools.partial(_forget_connections, weakref.ref(app)))


def active_config() -> Mapping[str, Any]:
    """The config of the app whose context is active; empty outside of any."""
    return current_app.config if has_app_context() else {}


def active_session() -> Any:
    """The `db.session` of Flask-SQLAlchemy of the app whose context is active, or None."""
    extension = current_app.extensions.get("sqlalchemy") if has_app_context() else None
    return getattr(extension, "session", None)


class _Door:
    """Where requests come in; its host is told of them until it knows that this process serves."""

    def __init__(self, app: Flask, host: Host) -> None:
        self._host = host
        request_started.connect(self._on_request, app)  # which the signal does not keep alive, and the app does
        host.look_around()

    def _on_request(self, app: Flask, **_: Any) -> None:
        if self._host.notice(request.environ):
            request_started.disconnect(self._on_request, app)


def _of_flask_cli() -> str | None:
    """What `flask --app`, or FLASK_APP, was given, in a command of `flask`."""
    context = click.get_current_context(silent=True)
    cli = sys.modules.get("flask.cli")
    info = context.find_object(cli.ScriptInfo) if context is not None and cli is not None else None
    return info.app_import_path if info is not None else None


def _forget_connections(app_ref: weakref.ref[Flask]) -> None:
    """In a forked child: what Flask-SQLAlchemy opened at import belongs to the parent; two processes on one socket garble each other."""
    app = app_ref()
    extension = app.extensions.get("sqlalchemy") if app is not None else None
    if app is None or extension is None:
        return
    with app.app_context():
        for engine in getattr(extension, "engines", {}).values():  # Flask-SQLAlchemy >= 3
            engine.dispose(close=False)


def _truth(value: Any) -> bool:
    return value.strip().lower() not in {*OFF_WORDS, ""} if isinstance(value, str) else bool(value)
