"""Owns `jobrunner web`: serving the dashboard by itself, without the application."""

from __future__ import annotations

import signal

import click

from jobrunner.cli.lazy import Command
from jobrunner.cli.output import say
from jobrunner.cli.ports import require_port
from jobrunner.cli.target import checked_database, find_database, read_dsn

PORT = 8765


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, metavar="NUMBER", help="0 takes a free one.")
@click.option("--read-only", is_flag=True, help="Nobody may change anything, whatever their role.")
def web(host: str, port: int, *, read_only: bool) -> None:
    """Serve the dashboard and the HTTP API until Ctrl-C or SIGTERM.

    On a loopback address, browsers on this machine get in. On another it needs JOBRUNNER_WEB_PASSWORD (user: admin).
    """
    dsn = find_database()
    if port:
        require_port(host, port)
    checked_database(dsn).close()
    from jobrunner.app import JobRunner
    from jobrunner.web import create_app, serve

    runner = JobRunner()
    runner.use_dsn(dsn.url, dsn.origin)
    replica = read_dsn()
    app = create_app(runner, read_only=read_only or None, read_dsn=replica.url if replica else None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server ends in order at an interrupt
    try:
        serve(app, host, port, on_ready=lambda url: say(f"dashboard of {dsn.target}: {url}     Ctrl-C stops"))
    except KeyboardInterrupt:
        say("stopped")
