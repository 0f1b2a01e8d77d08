"""Owns what the tests of the doctor share: an examination by code, the printed commands run by psql, clusters of one's own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jobrunner import migrate
from jobrunner.database import Database
from jobrunner.doctor import Finding, Limits, examine
from jobrunner.embedded import Server
from jobrunner.settings import parse_dsn
from tests.support import postgres as pg

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 60
FAST = {"fsync": "off", "max_connections": "30"}


class Report:
    """The findings of one examination."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings

    def all(self, code: str) -> list[Finding]:
        """Those with this code."""
        return [finding for finding in self.findings if finding.code == code]

    def one(self, code: str) -> Finding:
        """The only one with this code."""
        found = self.all(code)
        assert len(found) == 1, f"{code}: {found or [each for each in self.findings if each.state != 'ok']}"
        return found[0]

    def states(self) -> dict[str, str]:
        """Code and state of everything that is not ok."""
        return {finding.code: finding.state for finding in self.findings if finding.state != "ok"}


def examined(dsn: str, limits: Limits | None = None, timeout: timedelta = timedelta(seconds=SECONDS)) -> Report:
    """Examine a database; every finding has a known shape. A machine that stands still for some seconds is no finding."""
    database = Database(parse_dsn(dsn, "test"), pool_size=1)
    try:
        findings = examine(database, limits=limits, timeout=timeout)
    finally:
        database.close()
    for finding in findings:
        assert finding.text
        assert finding.group
        assert finding.state in {"ok", "note", "bad"}
        assert finding.fix or finding.state == "ok" or "unseen" in finding.data, finding
    return Report(findings)


def mend(dsn: str, finding: Finding) -> str:
    """Run the SQL of a finding as it is printed, as somebody would paste it into psql. Returns what psql said."""
    assert finding.fix.endswith(";"), finding
    command = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", "-", dsn]
    done = subprocess.run(command, input=finding.fix, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{finding.fix}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def cluster(options: dict[str, str] | None = None, *, bare: bool = False) -> Iterator[Server]:
    """A running server of one's own, with our schema in its database `postgres`; nothing of it survives a crash of the machine.

    Args:
        options: of its command line, which ALTER SYSTEM cannot change.
        bare: with those options only, as PostgreSQL comes.
    """
    directory = Path(tempfile.mkdtemp(prefix="jobrunner-doctor-", dir=pg.SHARED_MEMORY if pg.SHARED_MEMORY.is_dir() else None))
    directory.chmod(pg.OPEN_MODE)
    own = Server(directory / "pg", binaries=pg.given_binaries(), options=({} if bare else FAST) | (options or {}))
    try:
        own.start()
        migrate.upgrade(own.dsn())
        yield own
    finally:
        own.destroy()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def standby(primary: Server, **settings: str) -> Iterator[Server]:
    """A running standby of a cluster, made of a copy of its files while it is stopped; settings go into its configuration."""
    primary.stop()
    directory = primary.data_dir.with_name("standby")
    shutil.copytree(primary.data_dir, directory, ignore=shutil.ignore_patterns("*.pid", ".s.*"), symlinks=True)
    owner = primary.data_dir.stat()
    for path in (directory, *directory.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)
    directory.chmod(0o700)
    primary.start()
    parts = urlsplit(primary.dsn())
    host = dict(part.split("=") for part in parts.query.split("&"))["host"].replace("%2F", "/")
    lines = {"primary_conninfo": f"host={host} port=5432 user={parts.username} application_name=reports", **settings}
    with (directory / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
    (directory / "standby.signal").touch()
    shutil.chown(directory / "standby.signal", owner.st_uid, owner.st_gid)
    own = Server(directory, binaries=pg.given_binaries(), options=primary.options)
    try:
        own.start()
        yield own
    finally:
        own.destroy()
