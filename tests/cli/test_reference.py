"""The reference of the command line is complete: every command, every option, every exit code, every key of a document."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from jobrunner.cli import ENTRIES, cli
from jobrunner.cli.failures import Code
from jobrunner.cli.lazy import LazyGroup

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"


def commands(command=cli, path="jobrunner"):
    """Every command with its path, groups before what is in them."""
    yield path, command
    if isinstance(command, LazyGroup):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), f"{path} {name}")


COMMANDS = dict(commands())


def section(path):
    """The text below a command's heading, up to the next heading; for the program itself, everything before the commands."""
    text = REFERENCE.read_text()
    if path == "jobrunner":
        return text.partition("\n## `jobrunner ")[0]
    match = re.search(rf"^##+ `{re.escape(path)}(?: [^`]*)?`\n(.*?)(?=^##+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no heading for {path}"
    return match[1]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_described(path):
    """A command has its heading, and each of its options a row with every spelling, in the section below it."""
    text = section(path)
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option) and (path == "jobrunner" or not getattr(parameter, "is_global", False)):
            row = rf"^\| {'`, '.join(f'`{name}' for name in parameter.opts)}[ `]"
            assert re.search(row, text, re.MULTILINE), f"{path}: no row for {parameter.opts}"


def test_nothing_is_described_that_does_not_exist():
    """Every heading of a command is a command, and every row of an option below it is one of its options."""
    for path in re.findall(r"^##+ `(jobrunner [a-z -]+?)(?: [\[A-Z][^`]*)?`$", REFERENCE.read_text(), re.MULTILINE):
        assert path in COMMANDS
        known = {name for parameter in COMMANDS[path].params for name in parameter.opts}
        assert set(re.findall(r"^\| `(-[-\w]*)", section(path), re.MULTILINE)) <= known


def test_every_exit_code_is_described():
    """The table of codes has those of the program, and no other."""
    table = REFERENCE.read_text().partition("## Exit codes")[2].partition("\n\nCommands")[0]
    found = {int(number) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for number in cell.split(", ")}
    assert found == {int(code) for code in Code}


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if isinstance(command, LazyGroup)])
def test_the_table_of_a_group_says_what_its_commands_say(path):
    """The line that a group prints for a command, without importing it, is about that command: it exists, and its help begins alike."""
    for name, entry in COMMANDS[path].entries.items():
        if f"{path} {name}" in COMMANDS:
            said = COMMANDS[f"{path} {name}"].help
            assert said
            assert entry.help.split()[0].rstrip(":,.").lower() in said.lower()


def test_only_the_demo_may_be_missing():
    """Every command of the table is there; one may be left out of a build."""
    assert {name for name, entry in ENTRIES.items() if entry.optional} == {"demo"}


@pytest.mark.parametrize(
    ("path", "module", "names"),
    [
        ("jobrunner jobs list", "test_jobs", ["JOB_KEYS"]),
        ("jobrunner jobs show", "test_jobs", ["DETAIL_KEYS", "ATTEMPT_KEYS"]),
        ("jobrunner jobs logs", "test_logs", ["LOG_KEYS", "LINE_KEYS"]),
        ("jobrunner status", "test_work_status", ["STATUS_KEYS", "WORKER_KEYS", "RUNNING_KEYS"]),
        ("jobrunner top", "test_top", ["TOP_KEYS", "THROUGHPUT_KEYS", "ERROR_KEYS"]),
        ("jobrunner workers list", "test_workers", ["WORKER_KEYS"]),
        ("jobrunner workers runs", "test_workers", ["RUN_KEYS"]),
        ("jobrunner retention", "test_retention", ["RETENTION_KEYS", "RULE_KEYS", "TABLE_KEYS", "DUE_KEYS"]),
        ("jobrunner prune", "test_retention", ["PRUNED_KEYS", "PLANNED_KEYS"]),
        ("jobrunner doctor", "test_doctor", ["DOCTOR_KEYS", "FINDING_KEYS"]),
        ("jobrunner migrate-check", "test_migrate_check", ["CHECK_KEYS", "USE_KEYS"]),
        ("jobrunner db current", "test_db", ["VERSION_KEYS"]),
        ("jobrunner db status", "test_db", ["CLUSTER_KEYS"]),
    ],
)
def test_every_key_is_described(path, module, names):
    """The keys that the tests hold the documents to are those of the reference."""
    from importlib import import_module

    text = section(path) + (section("jobrunner jobs list") if path.endswith("show") else "")
    for name in names:
        missing = {key for key in getattr(import_module(f"tests.cli.{module}"), name) if f"`{key}`" not in text}
        assert not missing
