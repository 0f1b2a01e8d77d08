"""Every statement file runs in psql as it is, after one `\\set` for each parameter: an operator can try what the engine does."""

from __future__ import annotations

import json
import re
import subprocess

import psycopg
import pytest

from jobrunner import statements
from tests.support.calls import fill, parameters
from tests.support.rows import Scene

SECONDS = 30  # more than any psql call here takes


def text(value):
    """A parameter as `\\set` takes it between single quotes: an array as its literal, backslashes doubled."""
    if isinstance(value, list):
        value = "{" + ",".join(json.dumps(str(each)) for each in value) + "}"
    return str(1 if value is None else value).replace("\\", "\\\\")


@pytest.mark.needs("psql")
def test_every_file_pastes_into_psql(fresh_dsn):
    """psql runs the file and reports as many rows as the same statement run by the engine does."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        scene = Scene(connection)
        called = parameters(fill(scene, 50, "never"), 5)
        script, expected = ["\\set ON_ERROR_STOP on"], []
        assert set(called) == statements.names()
        for name, values in sorted(called.items()):
            with connection.transaction(force_rollback=True):
                found = scene.execute(statements.load(name), values)
                expected.append((name, len(found.fetchall())))
            script += ["BEGIN;", *(f"\\set {key} '{text(value)}'" for key, value in values.items())]
            script += [f"\\echo @{name}", statements.source(name).rstrip() + "\n;", "ROLLBACK;"]
    done = subprocess.run(
        ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", fresh_dsn],
        input="\n".join(script), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = re.findall(r"^@(\w+)\n((?:(?!@).+\n)*)", done.stdout, re.MULTILINE)
    assert [(name, len(rows.splitlines())) for name, rows in shown] == expected
