"""Owns the one stable way to the dashboard and the HTTP API: `create_app`, `mount`, `serve`, and the access checks.

It must not answer requests itself: the package `webapp` does, found inside the installed wheel or beside it in a checkout, never
by the bare name `webapp`, which a user's own package may have.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from jobrunner.app import JobRunner, find_jobrunner
from jobrunner.errors import ConfigurationError, EnqueueError
from jobrunner.inspection import registered_tasks
from jobrunner.policies import Policy
from jobrunner.replicas import Reads
from jobrunner.settings import ON_WORDS, parse_dsn
from jobrunner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import ModuleType

    from flask import Flask, Request

    from jobrunner.handle import Job
    from jobrunner.settings import Dsn

Role: TypeAlias = Literal["read", "operate", "admin"]
Auth: TypeAlias = "Callable[[Request], Role | None]"

PACKAGE = "jobrunner.webapp"
POOL_SIZE = 2  # connections for reading, and as many again under load: a dashboard must not crowd out the application
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "gray")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
USER_VARIABLE, PASSWORD_VARIABLE = "JOBRUNNER_WEB_USER", "JOBRUNNER_WEB_PASSWORD"


def create_app(
    jobs: JobRunner | None = None,
    *,
    dsn: str | None = None,
    auth: Auth | None = None,
    read_only: bool | None = None,
    env_name: str | None = None,
    env_color: str | None = None,
    read_dsn: str | None = None,
) -> Flask:
    """A Flask application that is the dashboard and the HTTP API, for `jobrunner web` and WSGI servers.

    Connects at the first request. `gunicorn 'jobrunner.web:create_app()'` works and is closed until it has an access check.

    Args:
        jobs: the application's; without it one is made for `dsn`. Tasks may then be enqueued that a live worker registers.
        dsn: the database, found as `JobRunner` finds it when None.
        auth: takes the Flask request and gives None, "read", "operate" or "admin". When None and `JOBRUNNER_WEB_PASSWORD` is set,
            HTTP Basic with that password (user: `JOBRUNNER_WEB_USER`, else `admin`). Otherwise closed, but for browsers on this
            machine when `serve` or Flask's debug server runs the app.
        read_only: nobody may change anything; None takes `JOBRUNNER_READ_ONLY`.
        env_name, env_color: badge on every page; None takes `JOBRUNNER_ENV_NAME` and `JOBRUNNER_ENV_COLOR`.
        read_dsn: a replica from which pages read; None takes `JOBRUNNER_READ_DSN`. Every change goes to the primary.

    Raises:
        ConfigurationError: both `jobs` and `dsn` are given, or a value is malformed.
    """
    if jobs is not None and dsn is not None:
        raise ConfigurationError("create_app(jobs, dsn=…): give one of the two; the JobRunner has a database already")
    if auth is None and os.environ.get(PASSWORD_VARIABLE):
        auth = basic_auth(os.environ.get(USER_VARIABLE) or "admin")
    replica = parse_dsn(read_dsn, "create_app(read_dsn=…)") if read_dsn is not None else None
    board = _dashboard(jobs or JobRunner(dsn=dsn), auth, read_only, env_name, env_color, (lambda: replica) if replica else None)
    return cast("Flask", _webapp().create(board))


def mount(
    app: Flask,
    jobs: JobRunner | None = None,
    url_prefix: str = "/jobrunner",
    *,
    auth: Auth | None = None,
    read_only: bool | None = None,
    env_name: str | None = None,
    env_color: str | None = None,
) -> None:
    """Put the dashboard and the HTTP API into an application, under `url_prefix`.

    Args:
        app: before its first request.
        jobs: the app's JobRunner when None.
        url_prefix: where; must begin with a slash.
        auth: as for `create_app`. When None it is closed, but for browsers on this machine under Flask's debug server.
        read_only: as for `create_app`; None also looks at `JOBRUNNER_READ_ONLY` in the app's config.
        env_name, env_color: as for `create_app`; None also looks into the app's config.

    Raises:
        ConfigurationError: the app has no JobRunner or a dashboard already, or a value is malformed.
    """
    if not url_prefix.startswith("/") or url_prefix.rstrip("/") == "":
        raise ConfigurationError(f"mount(url_prefix={url_prefix!r}): expected a path such as '/jobrunner'")
    config = app.config
    board = _dashboard(
        jobs or find_jobrunner(app),
        auth,
        config.get("JOBRUNNER_READ_ONLY") if read_only is None else read_only,
        env_name or config.get("JOBRUNNER_ENV_NAME"),
        env_color or config.get("JOBRUNNER_ENV_COLOR"),
    )
    _webapp().mount(app, board, url_prefix.rstrip("/"))


def serve(app: Flask, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve an app made by `create_app` until interrupted, with waitress (threads, no development server).

    Args:
        app: whose closed default opens to browsers on this machine when `host` is a loopback address.
        host: address to bind.
        port: 0 takes a free one.
        on_ready: called with the URL when connections are accepted.

    Raises:
        ConfigurationError: the address is in use or not ours to bind, or it is not loopback and the app has no access check.
    """
    _webapp()
    serving = importlib.import_module(f"{PACKAGE}.serving")
    serving.serve(app, host, port, on_ready)


def basic_auth(user: str, password_hash: str | None = None, *, password_env: str = PASSWORD_VARIABLE, role: Role = "admin") -> Auth:
    """A check for HTTP Basic with one user. Use it over https only: the password travels with every request.

    Args:
        user: the only one.
        password_hash: made by `werkzeug.security.generate_password_hash`; None takes the password from the environment.
        password_env: the variable that holds the password when there is no hash.
        role: what the user may do.

    Raises:
        ConfigurationError: there is neither a hash nor the variable, or no such role.
    """
    return cast("Auth", _webapp().access.basic_auth(user, password_hash, password_env=password_env, role=role))


def localhost_only(role: Role = "admin") -> Auth:
    """A check that lets in browsers on this machine: a loopback address, under a loopback name, with no proxy in between.

    Everybody with an account on the machine gets in. Never behind a reverse proxy: whatever says so in a header is refused.
    """
    return cast("Auth", _webapp().access.localhost_only(role))


def header(
    name: str,
    *,
    roles: Mapping[str, Role] | None = None,
    role: Role = "read",
    proxies: Collection[str] = ("127.0.0.1", "::1"),
    hosts: Collection[str] = (),
) -> Auth:
    """A check for a reverse proxy that has authenticated the user and names it in a header.

    The proxy must remove the header from what clients send. A request with two such headers is refused.

    Args:
        name: such as "X-Forwarded-User".
        roles: role of each user; others get nothing. None gives everybody `role`.
        role: see `roles`.
        proxies: addresses from which the header is believed; the connection's own, whatever ProxyFix says.
        hosts: names under which the dashboard is reached; give them, and a page that points its own name at this machine is refused.
    """
    given = dict(roles) if roles is not None else None
    return cast("Auth", _webapp().access.header(name, roles=given, role=role, proxies=proxies, hosts=hosts))


def version() -> str:
    """The version of this program as installed, or `dev`."""
    try:
        return metadata.version("jobrunner-pg")
    except metadata.PackageNotFoundError:
        return "dev"


def _dashboard(
    jobs: JobRunner,
    auth: Auth | None,
    read_only: object,
    env_name: str | None,
    env_color: str | None,
    read_dsn: Callable[[], Dsn | None] | None = None,
) -> Any:
    context = importlib.import_module(f"{_webapp().__name__}.context")
    name = env_name or os.environ.get("JOBRUNNER_ENV_NAME") or ""
    color = env_color or os.environ.get("JOBRUNNER_ENV_COLOR") or _color_of(name)
    if color not in COLORS:
        raise ConfigurationError(f"JOBRUNNER_ENV_COLOR={color!r}: expected one of {', '.join(COLORS)}")
    reads = Reads(lambda: jobs.dsn, read_dsn or jobs.read_dsn, POOL_SIZE)
    return context.Dashboard(
        jobs=jobs,
        reads=reads,
        enqueue=_Enqueue(jobs, reads),
        auth=auth,
        # Either side may close; neither can open what the other closed.
        read_only=_truth(read_only) or _truth(os.environ.get("JOBRUNNER_READ_ONLY")) if read_only is not False else False,
        badge=context.Badge(name, color) if name else None,
        version=version(),
    )


class _Enqueue:
    """Writes a job by the name of its task, in a transaction of its own.

    With registered tasks the arguments are checked against the function. Without any (`create_app(dsn=…)`) a task is accepted that
    some live worker registers, and its arguments are stored as they are.
    """

    def __init__(self, jobs: JobRunner, reads: Reads) -> None:
        self._jobs = jobs
        self._reads = reads

    def __call__(self, task: str, args: Mapping[str, Any], options: Mapping[str, Any]) -> Job[Any]:
        job = self._write(task, args, options)
        self._reads.wrote()
        return job

    def _write(self, task: str, args: Mapping[str, Any], options: Mapping[str, Any]) -> Job[Any]:
        own: dict[str, Any] = {**options, "session": None}  # never in a session of the host app: nobody would commit it
        if len(self._jobs.registry):
            home = self._jobs.branch_of(own.get("queue") or self._jobs.registry[task].policy.queue)
            if home is not self._jobs:
                raise EnqueueError(
                    f"the queue of this job lives in the database {home.database_name!r}, and this dashboard shows another",
                    hint=f"use the dashboard of that database: jobrunner web --database {home.database_name}",
                )
            return self._jobs.enqueue(task, args, **own)
        known = registered_tasks(self._jobs.database)
        if task not in known:
            raise _not_live(task, known)
        stand_in: Task[..., Any] = Task(_any_arguments, task, Policy(), self._jobs)
        # Not `enqueue(**args)`: an argument of the job may be called "self".
        return self._jobs.submit(stand_in, stand_in.options(**own)._options, (), args)  # noqa: SLF001


def _any_arguments(**_arguments_of_the_job: Any) -> None:
    """Stands for a function that this process does not have."""


def _not_live(task: str, known: Collection[str]) -> Exception:
    from jobrunner.errors import UnknownTask

    error = UnknownTask(task, known)
    error.hint = (
        f"registered by live workers: {', '.join(sorted(known))}"
        if known
        else "no worker is alive to ask for its tasks: start one, or create_app(jobs) with the application's own JobRunner"
    )
    return error


def _color_of(name: str) -> str:
    lowered = name.lower()
    return "red" if "prod" in lowered or lowered == "live" else "orange" if "stag" in lowered or "test" in lowered else "gray"


def _truth(value: object) -> bool:
    return value.strip().lower() in ON_WORDS if isinstance(value, str) else bool(value)


@cache
def _webapp() -> ModuleType:
    """The web package as `jobrunner.webapp`: installed there by the wheel, else loaded from the checkout under that name."""
    if importlib.util.find_spec(PACKAGE) is not None:
        return importlib.import_module(PACKAGE)
    directory = Path(__file__).resolve().parent.parent / "webapp"
    spec = importlib.util.spec_from_file_location(PACKAGE, directory / "__init__.py", submodule_search_locations=[str(directory)])
    if spec is None or spec.loader is None or not (directory / "application.py").is_file():
        raise ConfigurationError(
            "the web pages of Jobrunner are not installed", hint="reinstall: pip install --force-reinstall jobrunner-pg"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACKAGE]
        raise
    sys.modules["jobrunner"].webapp = module  # type: ignore[attr-defined]  # as an import would have done
    return module
