"""Owns the servers of the bench: a PostgreSQL and a Redis of its own, on sockets of its own, ended with it.

It must not touch a server that is there already, nor relax durability: fsync and synchronous_commit are on, Redis appends to its log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from bench.accounts import WORKER_ROLE
from bench.environments import Absent
from jobrunner.embedded import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK = "/var/tmp"  # noqa: S108  not /tmp, which may be memory: what is flushed has to reach a disk
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "max_connections": "400",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",  # switched on only where queries are counted
}
REDIS_SETTINGS = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
REDIS = os.environ.get("BENCH_REDIS_SERVER", "redis-server")
REDIS_MISSING = f"{REDIS} is not here: apt-get install redis-server (the bench starts its own; the service need not run)"
REDIS_PATIENCE = 10.0  # seconds
LOOK = 0.02  # seconds
SHARED_BUFFERS_SHARE = 8  # of the machine's memory at most: a small one gets less than 1 GB


@dataclass
class Servers:
    """What runs.

    Attributes:
        admin: a connection to the database `postgres`.
        counts_statements: whether pg_stat_statements is there.
        redis_pid: None where Redis is missing.
        redis_flushes: its `appendfsync` now.
    """

    server: Server
    admin: psycopg.Connection[Any]
    directory: Path
    counts_statements: bool = False
    redis_pid: int | None = None
    redis_flushes: str = REDIS_SETTINGS["appendfsync"]

    def database(self, name: str) -> str:
        """A new database; its DSN."""
        self.admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self.admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.server.dsn(name)

    def for_workers(self, dsn: str) -> str:
        """The same database for worker processes, which have a role of their own."""
        return dsn.replace(f"//{self.server.superuser}@", f"//{WORKER_ROLE}@", 1)

    def drop(self, name: str) -> None:
        """Free its space."""
        self.admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def redis(self, number: int) -> str:
        """The address of a numbered Redis database. Raises Absent without a Redis."""
        if self.redis_pid is None:
            raise Absent(REDIS_MISSING)
        return f"unix://{self.directory / 'redis' / 'redis.sock'}?db={number}"

    def redis_cli(self, *command: str) -> str:
        """What Redis says. Raises Absent without its client."""
        program = shutil.which("redis-cli")
        if program is None:
            raise Absent("redis-cli is not on PATH: apt-get install redis-tools")
        socket = str(self.directory / "redis" / "redis.sock")
        return subprocess.run([program, "-s", socket, *command], check=True, capture_output=True, text=True).stdout

    def flush_redis(self, *, each: bool) -> None:
        """Whether Redis has each write on the disk before it answers, or once a second."""
        wanted = "always" if each else REDIS_SETTINGS["appendfsync"]
        if wanted != self.redis_flushes:
            self.redis_cli("config", "set", "appendfsync", wanted)
            self.redis_flushes = wanted

    def pids(self, kind: str) -> list[int]:
        """The process of the server that a contender uses."""
        return [pid for pid in ([self.redis_pid] if kind == "redis" else [self.server.pid]) if pid is not None]

    def settle(self) -> None:
        """Begin the next measurement with nothing left to write from the last one."""
        self.admin.execute("CHECKPOINT")

    def facts(self) -> dict[str, Any]:
        """Versions and the settings that were asked for."""
        redis = None
        if self.redis_pid is not None:
            said = subprocess.run([REDIS, "--version"], check=True, capture_output=True, text=True).stdout
            redis = {"version": said.split("v=")[1].split()[0], "settings": REDIS_SETTINGS}
        ((version,),) = self.admin.execute("SHOW server_version").fetchall()
        return {"postgresql": {"version": version, "settings": self.server.options}, "redis": redis}


@contextlib.contextmanager
def running() -> Iterator[Servers]:
    """Start both, stop and remove both."""
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="jobrunner-bench-", dir=DISK))
        directory.chmod(0o711)  # PostgreSQL runs as somebody else when we are root
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        buffers = min(1 << 30, memory // SHARED_BUFFERS_SHARE)
        server = Server(directory / "pg", options={**SETTINGS, "shared_buffers": f"{buffers >> 20}MB"})
        stack.callback(server.destroy)
        server.start()
        binaries = server.binaries / "pgbench"
        if binaries.exists():
            os.environ["BENCH_PGBENCH"] = str(binaries)
        admin = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(WORKER_ROLE)))
        servers = Servers(server, admin, directory)
        with contextlib.suppress(psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
            admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            servers.counts_statements = True
        if shutil.which(REDIS):
            redis = stack.enter_context(_redis(directory / "redis"))
            servers.redis_pid = redis.pid
        yield servers


@contextlib.contextmanager
def _redis(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    directory.mkdir()
    socket = directory / "redis.sock"
    command = [REDIS, "--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--daemonize", "no"]
    command += [word for name, value in REDIS_SETTINGS.items() for word in (f"--{name}", value)]
    with (directory / "redis.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            end = time.monotonic() + REDIS_PATIENCE
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"error: {REDIS} did not start:\n{(directory / 'redis.log').read_text()[-2000:]}")
                time.sleep(LOOK)
            yield process
        finally:
            process.terminate()
            process.wait()
