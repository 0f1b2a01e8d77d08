"""Owns one PostgreSQL server on one data directory: start, readiness, addresses, stop, kill, destroy.

It must not know about projects, and must not wait with a deadline where PostgreSQL is recovering: recovery may take long.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import psycopg
from psycopg import conninfo, errors, pq, sql

from jobrunner.embedded import binaries as programs
from jobrunner.embedded import cluster, process
from jobrunner.embedded.account import OTHER_DATABASE, Account, account_for, make_parents, user_name
from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG_FILE = "server.log"
DEFAULT_PORT = 5432
"""Names the socket file when the server does not listen on TCP; given in every DSN, so that PGPORT cannot change it."""

MAX_SOCKET_DIR_BYTES = 84
"""Room for a socket directory: sun_path has 104 bytes on macOS, and `/.s.PGSQL.65535` with its end takes 16."""

_LOG_LIMIT_BYTES = 10 * 1024 * 1024
"""At start a log larger than this becomes `server.log.1`."""
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 15
_KEY_LENGTH = 12

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SIGNALS = {"fast": signal.SIGINT, "smart": signal.SIGTERM, "immediate": signal.SIGQUIT}

# Run as the cluster's account, so that root opens no file in a directory that somebody else owns. The server is started in the
# background by a shell that ends at once: nobody has to wait for it, and no zombie stays behind in a long-lived parent.
_MAKE_SOCKET_DIR = 'umask 077; mkdir -p "$1"'
_LAUNCH = 'umask 077; log=$1; rm -f "$2"/.s.PGSQL.*; shift 2; "$@" </dev/null >>"$log" 2>&1 & echo $!'

# What a PG* variable of the caller must not change in our own connections.
_PLAIN_CONNECTION = MappingProxyType({"options": "", "sslmode": "disable", "gssencmode": "disable", "target_session_attrs": "any"})


class Server:
    """One cluster in one data directory; any number of objects and processes may stand for the same cluster.

    Only `start` makes anything. The server outlives the process that started it and serves until `stop`.

    Args:
        data_dir: the cluster. Beside it stands its lock file `<name>.lock`; log and socket are inside.
        binaries: a directory with `postgres` and `initdb`; None looks for those that fit the cluster.
        options: settings passed as `-c`; they win over ours. They take effect when this object starts the server.
        port: None for the Unix socket only; else 127.0.0.1:port too, where the password of `tcp_dsn` is asked.
        superuser: the role that owns the cluster, used by every DSN.

    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path | None = None,
        options: Mapping[str, str] = MappingProxyType({}),
        port: int | None = None,
        superuser: str = "postgres",  # not our schema's name: "$user" in search_path would make it everybody's default schema
    ) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))
        self.port = port
        self.superuser = superuser
        self.options = dict(options)
        self._given_binaries = binaries
        self._launched: int | None = None
        self._log_began = 0

    def start(self, *, database: str | None = None) -> str:
        """Make the cluster if there is none, start the server if it is not running, and wait until it accepts connections.

        Safe to call at once from many processes: a lock per cluster lets one do the work. There is no deadline while the
        server recovers; when it exits instead, the error has the end of its log.

        Args:
            database: created when it does not exist.

        Returns:
            The DSN of `database`, or of `postgres`.

        Raises:
            EmbeddedError: no binaries, no permission, a directory closed to the server's account, or the server's own error.

        """
        while not self._wait_ready(self.pid or self._launch_alone()):
            pass  # the server we found was on its way down: test_start_while_it_is_being_stopped
        if database is not None:
            self._create_database(database)
        return self.dsn(database or "postgres")

    def stop(self, *, mode: Literal["fast", "smart", "immediate"] = "fast") -> bool:
        """Stop the server and wait until it is gone: `fast` ends sessions, `smart` waits for them, `immediate` is a crash.

        Returns:
            False when it was not running.

        """
        if not process.is_there(self.data_dir):
            return False
        with self._locked():
            return self._stop(_SIGNALS[mode])

    def kill(self) -> None:
        """Kill the server without warning, as a power cut would, and wait until it and all its backends are gone."""
        pid = self.pid
        if pid is None:
            return
        self._signal(pid, signal.SIGKILL)
        process.wait_until(lambda: not process.is_postmaster(pid, self.data_dir))
        process.wait_until(self._no_backend_survives)
        process.wait_until(lambda: not process.is_occupied(self.data_dir), process.ORPHAN_PATIENCE)

    def destroy(self) -> None:
        """Stop the server and remove the data directory with all that belongs to it.

        Raises:
            EmbeddedError: the directory is not a PostgreSQL cluster, so that nothing else is removed by mistake.

        """
        if not (process.is_there(self.data_dir) or process.is_there(self._lock_file)):
            return
        uid = account_for(self.data_dir).uid
        if self.data_dir.exists() and not cluster.has_cluster(self.data_dir) and any(self.data_dir.iterdir()):
            raise EmbeddedError(f"{self.data_dir} is not a PostgreSQL cluster; nothing was removed", hint="check JOBRUNNER_EMBEDDED_DIR")
        with self._locked():
            sockets = self.socket_dir
            self._stop(signal.SIGQUIT)
            cluster.remove_leftovers(self.data_dir)
            cluster.remove_cluster(self.data_dir)
            if sockets.name.startswith(_short_prefix(uid)):
                shutil.rmtree(sockets, ignore_errors=True)
            self._lock_file.unlink(missing_ok=True)

    def dsn(self, database: str = "postgres") -> str:
        """The address of a database through the Unix socket, for psycopg, psql and SQLAlchemy; asks for no password."""
        running = self._running()
        port = (running and running.port) or self.port or DEFAULT_PORT
        where = f"host={quote(os.fsencode(self.socket_dir))}&port={port}"
        return f"postgresql://{quote(self.superuser, safe='')}@/{quote(database, safe='')}?{where}"

    def tcp_dsn(self, database: str = "postgres") -> str:
        """The address of a database through 127.0.0.1, with its password, for a server made and started with a `port`."""
        if self.port is None:
            raise EmbeddedError("this server has no TCP port", hint="give Server(..., port=...)")
        password = (self.data_dir / cluster.PASSWORD_FILE).read_text(encoding="ascii")
        return f"postgresql://{quote(self.superuser, safe='')}:{password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    @property
    def pid(self) -> int | None:
        """The process id of the running postmaster, else None; a zombie or a reused id is not running."""
        running = self._running()
        return running.pid if running else None

    def is_running(self) -> bool:
        """Whether a postmaster serves this data directory; it may still be recovering."""
        return self.pid is not None

    @property
    def version(self) -> str:
        """The version of the cluster's binaries such as `18.6`, only the major version when there are none that fit."""
        try:
            return programs.version_of(self.binaries)
        except EmbeddedError:
            if (major := cluster.data_major(self.data_dir)) is None:
                raise
            return str(major)

    @property
    def binaries(self) -> Path:
        """The directory with the programs of this cluster; raises EmbeddedError when there is none that fits."""
        return self._given_binaries or programs.find_binaries(cluster.data_major(self.data_dir))

    @property
    def socket_dir(self) -> Path:
        """The directory of the Unix socket, mode 0700: inside the data directory, or a short one when that path is too long."""
        running = self._running()
        if running and running.socket_dir:
            return running.socket_dir
        inside = self.data_dir / "run"
        return inside if _fits(inside) else _short_socket_dir(self.data_dir, account_for(self.data_dir).uid)

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self.data_dir / LOG_FILE

    @property
    def _lock_file(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.lock")

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return process.exclusive(self._lock_file, account_for(self.data_dir).uid)

    def _running(self) -> process.PidFile | None:
        noted = process.read_pid_file(self.data_dir)
        return noted if noted and process.is_postmaster(noted.pid, self.data_dir) else None

    def _launch_alone(self) -> int:
        make_parents(self.data_dir.parent)
        with self._locked():
            return self.pid or self._launch()

    def _launch(self) -> int:
        """Make what is missing and start `postgres`; returns once it has written its process id. The lock is held."""
        account = account_for(self.data_dir)
        account.require_way_to(self.data_dir.parent, "the data directory")
        runnable = programs.usable_by(account, self.binaries)
        cluster.remove_leftovers(self.data_dir)
        if not cluster.has_cluster(self.data_dir):
            cluster.make_cluster(self.data_dir, runnable, account, self.superuser, durable=self.options.get("fsync") != "off")
        occupied = process.occupy(self.data_dir)
        try:
            sockets = self._make_socket_dir(account)
            return self._spawn(account, [runnable / "postgres", "-D", self.data_dir, *self._settings(sockets)], sockets, occupied)
        finally:
            os.close(occupied)  # the server keeps its own copy, and with it the lock

    def _spawn(self, account: Account, command: list[str | Path], sockets: Path, occupied: int) -> int:
        self._rotate_log()
        self._log_began = _size(self.log_file)
        shell: list[str | Path] = ["/bin/sh", "-c", _LAUNCH, "sh", self.log_file, sockets]
        answer = account.run([*shell, *command], env=self._stale_pid(), pass_fds=[occupied], detached=True)
        if not answer.stdout.strip().isdigit():
            raise EmbeddedError(f"cannot start PostgreSQL: {answer.stderr.strip()}", hint=OTHER_DATABASE)
        pid = int(answer.stdout)
        process.wait_until(lambda: self._has_written(pid) or not process.exists(pid))
        if not self._has_written(pid):
            raise self._ended(self._log_began)
        self._launched = pid
        return pid

    def _has_written(self, pid: int) -> bool:
        running = self._running()
        return running is not None and running.pid == pid

    def _stale_pid(self) -> dict[str, str]:
        """Tell PostgreSQL which noted id is stale; it then replaces postmaster.pid itself, after checking its shared memory.

        Without it an unrelated process with a reused id keeps the server from starting for ever: test_reused_pid.
        """
        stale = process.read_pid_file(self.data_dir)
        if stale is None:
            # a power cut leaves it empty, and PostgreSQL refuses that; we hold both locks, so nobody is writing it now
            (self.data_dir / process.PID_FILE).unlink(missing_ok=True)
            return {}
        return {"PG_GRANDPARENT_PID": str(stale.pid)}

    def _settings(self, sockets: Path) -> list[str]:
        quoted = str(sockets).replace('"', '""')
        settings = {
            "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm may be 64 MB or less
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": str(self.port or DEFAULT_PORT),
            "unix_socket_directories": f'"{quoted}"',
            "unix_socket_permissions": "0700",
            **self.options,
        }
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _make_socket_dir(self, account: Account) -> Path:
        path = self.socket_dir
        answer = account.run(["/bin/sh", "-c", _MAKE_SOCKET_DIR, "sh", path])
        info = path.lstat() if answer.returncode == 0 else None
        if info and stat.S_ISDIR(info.st_mode) and info.st_uid == account.uid and not info.st_mode & _OTHERS:
            return path
        found = f"mode {stat.S_IMODE(info.st_mode):04o}, owner {user_name(info.st_uid)}" if info else answer.stderr.strip()
        raise EmbeddedError(
            f"the socket directory {path} is not a closed directory (0700) of user {account.name}: {found}",
            hint="look who made it, then remove it; or set JOBRUNNER_EMBEDDED_DIR to a shorter path",
        )

    def _rotate_log(self) -> None:
        if _size(self.log_file) > _LOG_LIMIT_BYTES:
            self.log_file.replace(self.log_file.with_name(f"{LOG_FILE}.1"))

    def _wait_ready(self, pid: int) -> bool:
        """Wait until it accepts connections; False when a server that somebody else started or stopped ended meanwhile."""
        process.wait_until(lambda: self._accepts() or not process.is_postmaster(pid, self.data_dir))
        if process.is_postmaster(pid, self.data_dir):
            self._launched = None  # it has been up: if it ends from now on, somebody stopped it
            return True
        if pid == self._launched:
            raise self._ended(self._log_began)
        return False

    def _accepts(self) -> bool:
        return pq.PGconn.ping(self._own_conninfo().encode()) == pq.Ping.OK

    def _own_conninfo(self) -> str:
        return conninfo.make_conninfo(self.dsn(), **_PLAIN_CONNECTION)

    def _create_database(self, name: str) -> None:
        with psycopg.connect(self._own_conninfo(), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return
            # two starters may come here at once: the loser sees one of these, depending on how close they were
            with contextlib.suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _ended(self, since: int) -> EmbeddedError:
        tail = _tail(self.log_file, since)
        return EmbeddedError(f"PostgreSQL ended instead of starting; its log {self.log_file} says:\n{tail}", hint=OTHER_DATABASE)

    def _stop(self, how: signal.Signals) -> bool:
        pid = self.pid
        if pid is None:
            return False
        self._signal(pid, how)
        process.wait_until(lambda: not process.is_postmaster(pid, self.data_dir))
        return True

    def _signal(self, pid: int, how: signal.Signals) -> None:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise EmbeddedError(f"process {pid} of {self.data_dir} is not ours to stop", hint="run as its owner or as root") from error

    def _no_backend_survives(self) -> bool:
        for pid in process.backends_of(self.data_dir):
            self._signal(pid, signal.SIGKILL)
        return not process.backends_of(self.data_dir)


def _fits(path: Path) -> bool:
    text = str(path)
    return len(os.fsencode(text)) <= MAX_SOCKET_DIR_BYTES and text.isprintable() and "," not in text  # libpq splits hosts at commas


def _short_prefix(uid: int) -> str:
    return f"jobrunner-{uid}-"


def _short_socket_dir(data_dir: Path, uid: int) -> Path:
    name = _short_prefix(uid) + hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:_KEY_LENGTH]
    # root's own temporary directory may be closed to the account it becomes
    homes = (Path(tempfile.gettempdir()), Path("/tmp")) if os.geteuid() else (Path("/tmp"),)  # noqa: S108 - checked before use
    return next((home / name for home in homes if _fits(home / name)), homes[-1] / name)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _tail(path: Path, since: int) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        return f"(no log: {error.strerror})"
    with os.fdopen(fd, "rb") as file:
        file.seek(max(since, _size(path) - _LOG_TAIL_BYTES, 0))
        return "\n".join(file.read().decode(errors="replace").strip().splitlines()[-_LOG_TAIL_LINES:])
