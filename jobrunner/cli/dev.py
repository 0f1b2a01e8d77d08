"""Owns `jobrunner dev`: web server and worker as two children in one terminal, restarted when the code changes.

It must not import the application: what is imported once cannot be imported anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from jobrunner.cli.lazy import Command
from jobrunner.cli.output import say
from jobrunner.cli.ports import require_port
from jobrunner.cli.shared import shared
from jobrunner.cli.target import EMBEDDED, announce, app_spec, ask_app, find_database, reach, routing

GRACE = "5s"  # for running jobs at a restart: a developer who saved a file does not want to wait


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where the web server listens.")
@click.option("--port", type=click.IntRange(1, 65_535), default=5000, show_default=True, metavar="NUMBER", help="Of the web server.")
@click.option("--no-reload", is_flag=True, help="Do not restart when a Python file below this directory changes.")
def dev(host: str, port: int, *, no_reload: bool) -> None:
    """Develop: the web server and a worker in one terminal; Ctrl-C stops both.

    Serves the Flask app, or the dashboard when there is none, and works on the queues of all its tasks. The schema of the embedded
    PostgreSQL is upgraded first; that of a configured database is only checked.
    """
    from jobrunner import migrate
    from jobrunner.cli.children import Child, run_together
    from jobrunner.hosting.setting import NEVER
    from jobrunner.worker.leash import on_leash

    facts = ask_app()
    dsn = announce(reach(find_database(of_app=True)))
    others = routing()
    if dsn.origin == EMBEDDED:
        done = migrate.upgrade(dsn.url)
        if done:
            say(f"schema upgraded: ran {', '.join(done)}")
    migrate.check(dsn.url)
    for other in others.databases.values():
        migrate.check(announce(reach(other)).url)
    require_port(host, port)
    queues = ",".join(dict.fromkeys(["default", *(facts.queues if facts else [])]))
    spec = app_spec()
    app = ["--app", spec] if spec else []
    server = on_leash("jobrunner.cli.devserver", "--host", host, "--port", str(port), *app)
    worker = on_leash("jobrunner", "work", "--queues", queues, "--grace", GRACE, *app)
    children = [Child("web", server, "cyan")]
    if facts is not None:
        children.append(Child("worker", worker + (["-v"] if shared().verbose else []), "magenta"))
    else:
        say("there is no app here, so no task to run: serving the dashboard only")
    say(f"http://{host}:{port}/     Ctrl-C stops")
    # The worker is here: an embedded one would be a second.
    environment = os.environ | {"JOBRUNNER_DSN": dsn.url, "PYTHONUNBUFFERED": "1", NEVER: "1"} | others.environment()
    code = run_together(children, environment, watched=None if no_reload else Path.cwd())
    click.get_current_context().exit(code)
