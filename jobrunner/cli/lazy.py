"""Owns the click classes of our commands: subcommands imported when they are called, the same global options at every level.

It must not know any command; the tables of groups in `jobrunner.cli` and its modules do.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from jobrunner.cli.shared import global_options

if TYPE_CHECKING:
    from collections.abc import Mapping

GLOBAL_HEADING = "Global options (anywhere on the line)"


class Entry(NamedTuple):
    """Where a subcommand is, and its line in the help of the group: nothing is imported to print that.

    Attributes:
        module: holds the click command.
        attribute: its name there.
        help: one line.
        optional: True for a command that is not shown when the module does not exist.
    """

    module: str
    attribute: str
    help: str
    optional: bool = False


class _Globals(click.Command):
    """What commands and groups of ours share: the global options, kept apart in the help."""

    def __init__(self, name: str | None = None, *, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        super().__init__(name, params=[*(params or []), *global_options()], **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, then the ones that every command has, then the subcommands."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            # What an argument is stands in the text above; newer releases of click would list it here without a word.
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                (common if getattr(parameter, "is_global", False) or "--help" in parameter.opts else own).append(record)
        if own:
            with formatter.section("Options"):
                formatter.write_dl(own)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        with formatter.section(GLOBAL_HEADING):
            formatter.write_dl(common)


class Command(_Globals):
    """A command with the global options."""


class LazyGroup(_Globals, click.Group):
    """A group that knows its subcommands by name and imports one when it is needed."""

    def __init__(self, *args: Any, entries: Mapping[str, Entry] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = dict(entries or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """A group that does nothing alone shows its help, which is no error; click's own answer to that has changed between releases."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The names in the order of the table."""
        return [name for name, entry in self.entries.items() if not entry.optional or _exists(entry.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command of that name; None when there is none."""
        entry = self.entries.get(cmd_name)
        if entry is None or (entry.optional and not _exists(entry.module)):
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name gets the closest ones as an answer."""
        name = args[0]
        if name not in self.list_commands(ctx) and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=2, cutoff=0.5)
            guess = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
            raise click.UsageError(f"there is no command {name!r}.{guess}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of subcommands, from the table and not from the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.entries[name].help) for name in self.list_commands(ctx)])


def _exists(module: str) -> bool:
    return find_spec(module) is not None
