"""One cluster, against real servers: it starts, survives every kind of end, and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from psycopg.pq import PGconn, Ping

from jobrunner.embedded import (
    Server,
    process,
)
from jobrunner.errors import EmbeddedError
from tests.support.clusters import (
    PATIENCE,
    QUICK,
    REPOSITORY,
    STARTERS,
    ask,
    eventually,
    mode,
    note_pid,
    python,
    said,
    setting,
    unrelated,
)


class TestStart:
    def test_cold_start_gives_a_durable_private_cluster(self, home: Path) -> None:
        """A first start makes a UTF-8 cluster with checksums, default durability and no network, and the DSN leads to its database."""
        server = Server(home / "pg")
        dsn = server.start(database="app")
        assert ask(dsn, "SELECT current_database()") == "app"
        assert dsn.startswith("postgresql://postgres@/app?host=")
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
