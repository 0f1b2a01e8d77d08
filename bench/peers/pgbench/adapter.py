# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "pgbench"
# server = "postgresql"
# durability = "equal: committed and flushed before the call returns"
# ///
"""What PostgreSQL itself can take: pgbench inserting the same rows from C; it comes with PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
from protocol import Adapter, Unsupported, serve

from jobrunner import migrate

INSERT = """INSERT INTO jobrunner.jobs (task, args) VALUES ('noop', '{"argument": 1}') RETURNING id;"""
RATE = re.compile(r"tps = ([\d.]+) \(without initial connection time\)")


class Pgbench(Adapter):
    """The program."""

    def prepare(self) -> None:
        """Find it beside the server's other programs, or on PATH."""
        found = os.environ.get("BENCH_PGBENCH") or shutil.which("pgbench")
        if not found:
            raise Unsupported("pgbench is not here; apt-get install postgresql-contrib")
        self.program = found
        migrate.upgrade(self.dsn)
        self.script = Path(tempfile.mkdtemp(prefix="bench-pgbench-")) / "insert.sql"
        self.script.write_text(INSERT)

    def versions(self) -> dict[str, str]:
        """Of the program."""
        return {"pgbench": subprocess.run([self.program, "--version"], check=True, capture_output=True, text=True).stdout.strip()}

    def empty(self) -> None:
        """Empty the table."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "TRUNCATE jobrunner.jobs, jobrunner.job_history, jobrunner.job_attempts,"
                " jobrunner.rollup_pending, jobrunner.rollup_minute, jobrunner.rollup_hour"
            )

    def _run(self, count: int, clients: int) -> float:
        command = [
            self.program,
            "--no-vacuum",
            "--file",
            str(self.script),
            "--client",
            str(clients),
            "--transactions",
            str(count // clients),
        ]
        done = subprocess.run([*command, "--protocol", "prepared", self.dsn], check=True, capture_output=True, text=True)
        return count / float(RATE.search(done.stdout)[1])  # type: ignore[index]

    def single(self, count: int) -> float:
        """One client."""
        return self._run(count, 1)

    def threads(self, count: int, threads: int) -> float:
        """As many clients as threads."""
        return self._run(count, threads)


if __name__ == "__main__":
    serve(Pgbench())
