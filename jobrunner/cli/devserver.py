"""Owns the web half of `jobrunner dev`: the user's Flask app with the dashboard, on Werkzeug's development server.

It must not be used for anything else: the debugger runs code for whoever reaches it, so it is on for loopback addresses only.
"""

from __future__ import annotations

import ipaddress
import signal
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flask import Flask

DASHBOARD = "/jobrunner"


@click.command()
@click.option("--host", required=True)
@click.option("--port", type=int, required=True)
@click.option("--app", "spec")
def serve(host: str, port: int, spec: str | None) -> None:
    """Serve the app at / and the dashboard at /jobrunner, or the dashboard alone when there is no Flask app."""
    from werkzeug.serving import run_simple

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ways of asking end in the same place
    local = _is_loopback(host)
    app, prefix = _application(spec)
    app.debug = local
    if prefix is not None:
        click.echo(f"dashboard: http://{host}:{port}{prefix}/", err=True)
    try:
        run_simple(host, port, app, threaded=True, use_debugger=local)
    except KeyboardInterrupt:
        sys.exit(0)


def _application(spec: str | None) -> tuple[Flask, str | None]:
    """The app to serve, and where the dashboard is in it when it was put there."""
    from jobrunner.errors import AppImportError
    from jobrunner.loading import load
    from jobrunner.web import create_app, mount

    try:
        runner = load(spec)
    except AppImportError as error:
        if spec is not None or error.__cause__ is not None:
            raise
        return create_app(), ""
    if runner.app is None:
        return create_app(runner), ""
    if "jobrunner-web" in runner.app.extensions:  # the app has put it where it wants it
        return runner.app, None
    mount(runner.app, runner, DASHBOARD)
    return runner.app, DASHBOARD


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    serve()
