"""The page about the command line says what the commands say."""

from __future__ import annotations

from tools import cli_doc


def test_the_page_is_what_the_commands_say(monkeypatch):
    """docs/reference/cli.md has every command with its options, as `--help` prints them."""
    monkeypatch.setenv("COLUMNS", str(cli_doc.WIDTH))
    assert cli_doc.PAGE.read_text() == cli_doc.page(), "run: python -m tools.cli_doc"
