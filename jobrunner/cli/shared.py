"""Owns what every command is given: the global options, and the way to ask for their values.

It must not import more than click: `jobrunner --version` and every usage error pass through here.
"""

from __future__ import annotations

import os
from typing import Any

import click

_KEY = "jobrunner.cli"


class Shared:
    """The values of the global options. No dataclass: that module costs 10 ms of every start.

    Attributes:
        dsn: of `--dsn`.
        database: of `--database`: the name of one of several.
        app: of `--app`.
        json: answer with one JSON document.
        quiet: say nothing that is not an error.
        verbose: show tracebacks and debug lines.
        color: None to decide by the terminal.
    """

    __slots__ = ("app", "color", "database", "dsn", "json", "quiet", "verbose")

    def __init__(self, *, verbose: bool = False, color: bool | None = None) -> None:
        self.dsn: str | None = None
        self.database: str | None = None
        self.app: str | None = None
        self.json = False
        self.quiet = False
        self.verbose = verbose
        self.color = color


def shared(ctx: click.Context | None = None) -> Shared:
    """The global options of the command that runs, given before or after the subcommand."""
    context = ctx or click.get_current_context(silent=True)
    if context is None:
        return Shared()
    values: Shared = context.meta.setdefault(_KEY, Shared(color=False if os.environ.get("NO_COLOR") else None))
    return values


class _GlobalOption(click.Option):
    is_global = True


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store a value that was given; one that was not must not undo what stood before the subcommand."""
    values = shared(ctx)
    if value is None or value is False:
        if values.color is False:
            ctx.color = False
        return
    if parameter.name == "no_color":
        values.color = False
        ctx.color = False
        return
    setattr(values, str(parameter.name), value)


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  click's signature
    if value and not ctx.resilient_parsing:
        from jobrunner import __version__

        click.echo(f"jobrunner {__version__}")
        ctx.exit()


def global_options() -> list[click.Parameter]:
    """New options for one command; click wants each command to own its parameters."""
    common: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        _GlobalOption(
            ["--dsn"],
            metavar="URL",
            help="Database. Default: JOBRUNNER_DSN, the app's config, DATABASE_URL, else the embedded PostgreSQL.",
            **common,
        ),
        _GlobalOption(["--database"], metavar="NAME", help="One of several: a name of JOBRUNNER_DATABASES, or default.", **common),
        _GlobalOption(
            ["--app"], metavar="MODULE:NAME", help="Application. Default: JOBRUNNER_APP, FLASK_APP, else app.py or wsgi.py here.", **common
        ),
        _GlobalOption(["--json"], is_flag=True, help="Answer with one JSON document.", **common),
        _GlobalOption(["-q", "--quiet"], is_flag=True, help="Say nothing that is not data or an error.", **common),
        _GlobalOption(["-v", "--verbose"], is_flag=True, help="Show tracebacks and debug messages.", **common),
        _GlobalOption(["--no-color"], is_flag=True, help="No colours; so does NO_COLOR=1.", **common),
        _GlobalOption(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version and leave."
        ),
    ]
