"""Runs the smoke subset (`pytest -m matrix`) on the oldest and newest supported versions, each in an environment of its own.

The cells of Celery run the tests of the Kombu transport that say whether an unmodified application keeps its promises.

`python -m tools.matrix [--only NAME] [--fresh]`. Environments are kept in `.matrix/` until their requirements change. What a machine lacks
(an interpreter, a PostgreSQL) is reported as absent, never as passed; the exit code is 1 when a cell fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools import environment

ROOT = environment.ROOT
PLACE = ROOT / ".matrix"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
CELERIES = {"5.4": (3, 12), "5.5": (3, 13), "5.6": (3, 13)}  # with the newest Python it is declared for, and the Kombu of its number
WORKERS = "tests/compat/kombu/test_celery_workers.py"
OF_CELERY = (
    "tests/compat/kombu/test_messages.py",
    "tests/compat/kombu/test_results.py",
    *(
        f"{WORKERS}::{name}"
        for name in (
            "test_an_app_runs_by_changing_its_url",
            "test_a_chord_fails_with_what_its_part_raised", "test_a_chord_waits_for_groups_in_its_group",
            "test_a_chord_of_a_generator_is_sent_as_it_is_made",
            "test_nothing_is_lost_or_doubled_by_kill_9", "test_an_eta_waits_in_the_database",
            "test_remote_control_answers", "test_an_expired_task_is_revoked_and_not_dropped",
        )
    ),
)  # fmt: skip
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SMOKE_SECONDS = 300  # of one cell, six times what the longest takes; a hang is a failure
FLOORS = [
    "flask==3.0.*", "werkzeug==3.0.*", "sqlalchemy==2.0.*", "alembic==1.13.*", "psycopg[binary]==3.2.*", "click==8.1.*", "rich==13.*",
]  # fmt: skip
# An old release warns about what newer Pythons and newer neighbours deprecated; our own warnings stay errors in the newest cells.
OLD_WARNINGS = ["-W", "default::DeprecationWarning", "-W", "default::PendingDeprecationWarning"]


@dataclass(frozen=True)
class Cell:
    """One combination of versions.

    Attributes:
        name: names its directory too.
        pins: requirements that decide the versions.
        python: an interpreter; None when this machine has none of that version.
        extra: the extra of ours that brings the embedded PostgreSQL.
        binaries: a directory of PostgreSQL programs; None takes the extra's.
        absent: why the cell cannot run here; empty when it can.
        options: for pytest.
        tests: what is run.
        shown: packages whose versions are told.
    """

    name: str
    pins: tuple[str, ...] = ()
    python: str | None = sys.executable
    extra: str = "embedded"
    binaries: Path | None = None
    absent: str = ""
    options: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("-m", "matrix")
    shown: tuple[str, ...] = ("flask", "sqlalchemy", "psycopg", "alembic", "click")

    @property
    def venv(self) -> Path:
        """The environment of the cell."""
        return PLACE / self.name

    @property
    def requirements(self) -> list[str]:
        """What pip is given."""
        return ["--editable", f".[{self.extra}]", *self.pins, *environment.group("test")]

    @property
    def key(self) -> str:
        """Changes when the environment has to be made anew."""
        parts = [*self.requirements, str(self.python), (ROOT / "pyproject.toml").read_text()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """How a cell ended, with what it really ran on."""

    cell: Cell
    state: Literal["passed", "FAILED", "absent"]
    detail: str
    seconds: float = 0.0


def cells() -> list[Cell]:
    """The supported combinations worth running: both ends, both embedded servers, Debian's, and each Python there is."""
    floors, old = tuple(FLOORS), tuple(OLD_WARNINGS)
    no_debian = "" if (DEBIAN_15 / "postgres").exists() else f"no PostgreSQL 15 in {DEBIAN_15}"
    found = [
        Cell("oldest-pg15", floors, binaries=DEBIAN_15, absent=no_debian, options=old),
        Cell("oldest-pg18", floors, options=old),
        Cell("newest-pg18"),
        Cell("newest-pg17", extra="embedded-musl"),
    ]
    found += [of_celery(one, newest) for one, newest in CELERIES.items()]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in PYTHONS:
        if version != here:
            python = find_python(version)
            found.append(Cell(f"python{version}", python=python, absent="" if python else f"no Python {version} on this machine"))
    return found


def of_celery(series: str, newest: tuple[int, int]) -> Cell:
    """A series of Celery, on this Python unless it is newer than what the series is declared for."""
    name = ".".join(map(str, newest))
    python = sys.executable if sys.version_info[:2] <= newest else find_python(name)
    pins = (f"celery=={series}.*", f"kombu=={series}.*")
    absent = "" if python else f"no Python {name} on this machine"
    return Cell(
        f"celery{series}", pins, python=python, absent=absent, options=tuple(OLD_WARNINGS), tests=OF_CELERY, shown=("celery", "kombu")
    )


def find_python(version: str) -> str | None:
    """An interpreter of that version: pyenv's (also when its shim is not active), else the one on PATH, if it starts."""
    names = sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")), reverse=True)
    for candidate in [*names, shutil.which(f"python{version}")]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def prepare(cell: Cell) -> None:
    """Make the environment of a cell, unless it is there with the same requirements."""
    stamp = cell.venv / "requirements.sha256"
    if stamp.exists() and stamp.read_text() == cell.key and environment.usable(cell.venv):
        return
    shutil.rmtree(cell.venv, ignore_errors=True)
    environment.make(cell.venv, str(cell.python))
    environment.install(cell.venv, cell.requirements)
    stamp.write_text(cell.key)


def smoke(cell: Cell) -> Verdict:
    """Run the subset in a prepared cell."""
    python = str(environment.interpreter(cell.venv))
    # As bare names only: an environment of the checkout's own must not shine through.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JOBRUNNER_", "PYTHON", "PYTEST_", "VIRTUAL_ENV"))}
    if cell.binaries:
        env["JOBRUNNER_TEST_BINARIES"] = str(cell.binaries)
    started = time.monotonic()
    command = [python, "-m", "pytest", *cell.tests, "-q", "-p", "no:cacheprovider", *cell.options]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SMOKE_SECONDS, check=False
        )
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = f"{(late.stdout or b'').decode(errors='replace')}\nno end after {SMOKE_SECONDS} s", 1
    seconds = time.monotonic() - started
    if code:
        print(f"--- {cell.name}\n{output.strip()}\n---", flush=True)
    counts = re.findall(r"\d+ (?:passed|failed|errors?)\b", output)
    return Verdict(cell, "FAILED" if code else "passed", f"{', '.join(counts) or 'no test ran'}: {versions(cell)}", seconds)


def versions(cell: Cell) -> str:
    """The versions that a cell really has; a pin that resolved to something else would be seen here."""
    code = (
        "import sys; from importlib.metadata import version as v; print(f'Python {sys.version.split()[0]}',"
        f" *(f'{{n}} {{v(n)}}' for n in {cell.shown!r}), sep=', ')"
    )
    run = subprocess.run([str(environment.interpreter(cell.venv)), "-c", code], capture_output=True, text=True, check=False)
    place = cell.binaries / "postgres" if cell.binaries else next(cell.venv.glob("lib/*/site-packages/*/pginstall/bin/postgres"), None)
    if place is None:
        return f"{run.stdout.strip()}, no PostgreSQL"
    answer = subprocess.run([str(place), "-V"], capture_output=True, text=True, check=False, cwd="/").stdout
    found = re.search(r"\) (\S+)", answer)
    return f"{run.stdout.strip()}, PostgreSQL {found[1] if found else '?'}"


def run(cell: Cell) -> Verdict:
    """Prepare and smoke one cell; a cell that cannot be installed has failed."""
    if cell.absent:
        return Verdict(cell, "absent", cell.absent)
    try:
        prepare(cell)
    except subprocess.CalledProcessError as failed:
        return Verdict(cell, "FAILED", f"could not be installed (exit code {failed.returncode}): {' '.join(cell.requirements)}")
    return smoke(cell)


def main() -> int:
    """Run the cells one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", metavar="NAME", help="cells whose name begins so")
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    given = parser.parse_args()
    chosen = [cell for cell in cells() if cell.name.startswith(given.only or "")]
    if given.fresh:
        for cell in chosen:
            shutil.rmtree(cell.venv, ignore_errors=True)
    verdicts = []
    for cell in chosen:
        print(f"matrix: {cell.name} ...", flush=True)
        verdicts.append(run(cell))
    width = max((len(cell.name) for cell in chosen), default=0)
    print(*(f"{v.cell.name:<{width}}  {v.state:<6}  {v.seconds:5.0f} s  {v.detail}" for v in verdicts), sep="\n", flush=True)
    return 1 if not verdicts or any(v.state == "FAILED" for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
