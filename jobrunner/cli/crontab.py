"""Owns the crontab line of this project, and trying it out as cron would run it.

It must not put a password into the line: a crontab is backed up, mailed and shown by `ps`.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.cli.failures import Code, CommandError
from jobrunner.texts import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.settings import Dsn

TRY_SECONDS = 120  # for the import of an application on a busy machine
_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_NEARLY = timedelta(seconds=5)  # that a run of the whole interval leaves to the next start
_BY_ENVIRONMENT = ("--dsn", "JOBRUNNER_DSN", "DATABASE_URL")  # origins of an address that cron knows nothing of
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=\s*(.*)$")


@dataclass(frozen=True, slots=True)
class Crontab:
    """What a line of this project is made of.

    Attributes:
        directory: where the application is found.
        program: absolute path and arguments that start this Jobrunner.
        app: for `--app`; None when it is found in the directory.
        queues: as an argument; empty for the default.
        pool: for `--pool`; None for the queues' names.
        every: the interval between starts.
        dsn: the database's address without password, for the environment; None when it is found without.
        env_file: a file of assignments that is read before.
    """

    directory: Path
    program: tuple[str, ...]
    app: str | None
    queues: str
    pool: str | None
    every: timedelta
    dsn: str | None
    env_file: Path | None

    @property
    def line(self) -> str:
        """The line for `crontab -e`."""
        command = self.command(["cron", *([self.queues] if self.queues else []), *self._options()])
        return f"{schedule(self.every)}  {command}".replace("%", r"\%")  # to cron a bare % is the end of the command

    def command(self, arguments: Sequence[str]) -> str:
        """The shell command for these arguments, in the directory and with the environment of the line."""
        parts = [f"cd {shlex.quote(str(self.directory))}"]
        if self.env_file is not None:
            parts.append(f"set -a && . {shlex.quote(str(self.env_file))} && set +a")
        environment = f"JOBRUNNER_DSN={shlex.quote(self.dsn)} " if self.dsn else ""
        app = ["--app", self.app] if self.app else []
        return " && ".join([*parts, environment + shlex.join([*self.program, *arguments, *app])])

    def _options(self) -> list[str]:
        stay = self.every - _NEARLY
        pool = ["--pool", self.pool] if self.pool else []
        return [*pool, *(["--for", f"{stay.total_seconds():.0f}s"] if self.every == _MINUTE else [])]

    def try_out(self) -> dict[str, Any] | str:
        """Run `doctor --setup --json` as cron would run the line. Returns its document, or what was said instead of one."""
        user = pwd.getpwuid(os.geteuid())
        bare = {"HOME": user.pw_dir, "LOGNAME": user.pw_name, "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", self.command(["doctor", "--setup", "--json"])],
                env=bare, cwd=user.pw_dir if Path(user.pw_dir).is_dir() else "/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="backslashreplace", timeout=TRY_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it did not answer within {TRY_SECONDS} s"
        try:
            document: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            return redacted(said[-1]) if said else f"it ended with {done.returncode} and said nothing"
        return document


def schedule(every: timedelta) -> str:
    """The first five fields for an interval that cron can keep.

    Raises:
        CommandError: it cannot.
    """
    minutes = every / _MINUTE
    if every == _MINUTE:
        return "* * * * *"
    if minutes == int(minutes) and minutes > 1 and _HOUR % every == timedelta(0):
        return f"*/{minutes:.0f} * * * *" if every < _HOUR else "0 * * * *"
    if every % _HOUR == timedelta(0) and every and _DAY % every == timedelta(0):
        return f"0 */{every / _HOUR:.0f} * * *" if every < _DAY else "0 0 * * *"
    raise CommandError(
        Code.USAGE, f"--every {every.total_seconds():g}s: cron cannot keep that interval", hint="try:   60s, 5m, 15m, 1h: parts of a day"
    )


def program() -> tuple[str, ...]:
    """What starts this Jobrunner, whatever PATH is: the script beside this Python, or the module."""
    script = Path(sys.executable).parent / "jobrunner"
    return (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-m", "jobrunner")


def needs_environment(dsn: Dsn) -> bool:
    """Whether cron would not know this address: it comes from the shell, or from the command line."""
    return dsn.origin in _BY_ENVIRONMENT


def assignments(path: Path) -> dict[str, str]:
    """The names that an environment file sets, with what stands behind them; empty when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {match[1]: match[2].strip() for line in lines if (match := _ASSIGNMENT.match(line))}
