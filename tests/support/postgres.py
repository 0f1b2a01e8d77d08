"""Owns the PostgreSQL that a test run uses: one server and one migrated template for all its processes, and their databases.

It must not touch databases of the server that it did not make: `JOBRUNNER_TEST_DSN` may name a server with others on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from jobrunner import migrate
from jobrunner.embedded import Server
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_DIRECTORY = "JOBRUNNER_TEST_RUN_DIR"  # set by the first process of a run, inherited by pytest-xdist's workers
GIVEN_DSN = "JOBRUNNER_TEST_DSN"
GIVEN_BINARIES = "JOBRUNNER_TEST_BINARIES"

SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 1_000_000_000  # a cluster, WAL, and a database of about 10 MB for each test that wants its own
PREFIX = f"jobrunner-tests-{os.getuid()}-"
OPEN_MODE = 0o711  # the server's account, when we are root, passes through; names inside are not listed

# Nothing survives a crash of the machine, and nothing has to: it saves two thirds of the time.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
}

# Of a client that was killed the server ends the last statement all the same; whoever sleeps or waits for somebody may do so for ever.
STILL_WRITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'"
    " AND backend_type = 'client backend' AND coalesce(wait_event_type, '') NOT IN ('Client', 'Lock', 'Timeout')"
)


@dataclass(frozen=True)
class Postgres:
    """The server of this test run, as tests see it."""

    admin_dsn: str
    template: str
    version: int
    """As libpq gives it: 150018 is 15.18."""

    def dsn(self, database: str) -> str:
        """The address of another database on the server."""
        return with_database(self.admin_dsn, database)

    def create(self, name: str, *, template: str | None = None) -> str:
        """Make a database, from the migrated template unless told otherwise, and return its address."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template or self.template))
        if self.version >= 150000:
            statement += sql.SQL(" STRATEGY FILE_COPY")
        self._execute(statement)
        return self.dsn(name)

    def drop(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def temporary(self, *, template: str | None = None) -> Iterator[str]:
        """A database of one's own, dropped at the end."""
        name = f"jobrunner_own_{secrets.token_hex(6)}"
        try:
            yield self.create(name, template=template)
        finally:
            self.drop(name)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(statement)


@dataclass
class Run:
    """One test run: its directory, and the server in it. The process that made the directory removes both."""

    directory: Path
    owner: bool
    _lock: int | None = field(default=None, repr=False)

    @classmethod
    def begin(cls) -> Run:
        """Make the directory of a new run, after removing those of runs that were killed."""
        base = _base()
        for left in base.glob(f"{PREFIX}*"):
            _remove_if_left(left)
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        directory.chmod(OPEN_MODE)
        os.environ[RUN_DIRECTORY] = str(directory)
        return cls(directory, owner=True, _lock=_take(directory / "owner.lock"))

    @classmethod
    def join(cls) -> Run:
        """The run that another process began."""
        return cls(Path(os.environ[RUN_DIRECTORY]), owner=False)

    def postgres(self) -> Postgres:
        """The server with its migrated template; the first process that asks starts and migrates, others wait for it."""
        with (self.directory / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            admin = os.environ.get(GIVEN_DSN) or self._server().start()
            with psycopg.connect(admin) as connection:
                version = connection.info.server_version
            # The random part of the directory's name: two runs on one given server do not meet.
            postgres = Postgres(admin, f"jobrunner_template_{self.directory.name.removeprefix(PREFIX).lower()}", version)
            self._build(postgres)
            return postgres

    def end(self) -> None:
        """Remove the server and the directory, and on a given server the template."""
        if not self.owner:
            return
        built = self.directory / "template"
        if (given := os.environ.get(GIVEN_DSN)) and built.exists():
            Postgres(given, "", 0).drop(built.read_text())
        self._server().destroy()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def _server(self) -> Server:
        return Server(self.directory / "pg", binaries=given_binaries(), options=FAST)

    def _build(self, postgres: Postgres) -> None:
        built = self.directory / "template"
        if built.exists():
            return
        migrate.upgrade(postgres.create(postgres.template, template="template0"))
        built.write_text(postgres.template)


class SharedDatabase:
    """The database that the tests of one process share one after the other, and how it is emptied in between."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        with psycopg.connect(dsn) as connection:
            self._tables = [sql.Identifier("jobrunner", name) for name in _tables(connection)]
            self._seeds = {table: rows for table in self._tables if (rows := _copy_out(connection, table))}

    def empty(self) -> None:
        """Bring it back to what the migrations left; sequences go on, so that a test cannot rely on ids.

        Raises:
            AssertionError: the test left a transaction or a statement in some session. That session is ended, so the next test is safe.
        """
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '5s'")
            try:
                wait_until(lambda: connection.execute(STILL_WRITING).fetchone() == (0,), timeout=60, what="its last statements to end")
                self._empty(connection)
            except (AssertionError, psycopg.errors.LockNotAvailable):
                ended = _end_others(connection)
                self._empty(connection)
                raise AssertionError(f"the test left statements that do not end, or transactions open that hold locks: {ended}") from None

    def _empty(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        with connection.transaction():
            # One statement: foreign keys are checked at its end, so the order of the tables does not matter.
            deletes = [sql.SQL("d{} AS (DELETE FROM {})").format(sql.SQL(str(number)), table) for number, table in enumerate(self._tables)]
            connection.execute(sql.SQL("WITH {} SELECT").format(sql.SQL(", ").join(deletes)))
            for table, rows in self._seeds.items():
                with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table)) as copy:
                    copy.write(rows)
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
                connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier("public", str(name))))


def with_database(dsn: str, database: str) -> str:
    """The same address with another database; by text, because `urlunsplit` loses the empty host of a socket address."""
    parts = urlsplit(dsn)
    return f"{parts.scheme}://{parts.netloc}/{database}" + (f"?{parts.query}" if parts.query else "")


def given_binaries() -> Path | None:
    """The PostgreSQL that the matrix asks for."""
    given = os.environ.get(GIVEN_BINARIES)
    return Path(given) if given else None


def disk_directory() -> Path:
    """A new directory on a disk, for a cluster whose durability is under test."""
    directory = Path(tempfile.mkdtemp(prefix="jobrunner-durable-", dir="/var/tmp"))
    directory.chmod(OPEN_MODE)
    return directory


def _base() -> Path:
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= NEEDED_BYTES:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _take(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _remove_if_left(directory: Path) -> None:
    """Remove a run's directory when its first process is gone; a directory that is just being made has no lock file yet."""
    if not (directory / "owner.lock").exists() or (lock := _take(directory / "owner.lock")) is None:
        return
    with contextlib.suppress(Exception):  # another run may be removing it at this moment
        Server(directory / "pg").destroy()
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _tables(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'jobrunner'::regnamespace AND relkind IN ('r', 'p')"
        " AND NOT relispartition AND relname <> 'alembic_version' ORDER BY relname"
    )
    return [str(name) for (name,) in found.fetchall()]


def _copy_out(connection: psycopg.Connection[tuple[object, ...]], table: sql.Identifier) -> bytes:
    with connection.cursor().copy(sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(table)) as copy:
        return b"".join(bytes(part) for part in copy)


def _end_others(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    found = connection.execute(
        "SELECT format('%s %s: %s', application_name, state, left(query, 120)), pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'"
    )
    return [str(what) for what, _ in found.fetchall()]
