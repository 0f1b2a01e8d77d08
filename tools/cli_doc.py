"""Prints docs/reference/cli.md: every command's own help, and the exit codes. `tests/contract/test_cli_doc.py` holds the page to it."""

from __future__ import annotations

import os
from pathlib import Path

import click

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
WIDTH = 100

INTRODUCTION = """\
# Command line

`jobrunner …`, and the same commands as `flask jobs …` for the current Flask app. Data goes to standard output, everything else to standard
error. Reading commands need only a database and never import the app. This page is printed by `python -m tools.cli_doc`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done, or nothing to do |
| 1 | the thing asked about is bad: the job failed (`--wait`), `db check` found a difference |
| 2 | usage, configuration, or an app that cannot be imported |
| 3 | database unreachable, or login refused |
| 4 | schema missing, outdated, or newer than this program |
| 5 | busy |
| 6 | not found |
| 7 | refused: needs `--yes`, or read-only |
| 70 | a bug of ours; the traceback is in a file whose path is printed |
| 130, 143 | interrupted or terminated before a clean end |
"""


def page() -> str:
    """The whole page."""
    from jobrunner.cli import cli

    os.environ["COLUMNS"] = str(WIDTH)
    return INTRODUCTION + "".join(_sections(cli, "jobrunner", None))


def _sections(command: click.Command, path: str, parent: click.Context | None) -> list[str]:
    context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    sections = [f"\n## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                sections += _sections(inner, f"{path} {name}", context)
    return sections


if __name__ == "__main__":
    PAGE.write_text(page())
