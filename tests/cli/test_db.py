"""`jobrunner db …`: the schema's version, and the embedded PostgreSQL."""

from __future__ import annotations

import psycopg
import pytest

from jobrunner import migrate
from tests.support.cli import Program
from tests.support.revisions import ours

HEAD = ours()[-1]
PENDING = f"{len(ours())} migrations to run: {', '.join(ours())}"
VERSION_KEYS = {"current", "head", "pending", "known", "up_to_date"}
CLUSTER_KEYS = {"running", "pid", "dsn", "data_dir", "version", "size_bytes", "binaries"}


@pytest.fixture
def empty(tmp_path, empty_dsn):
    """`jobrunner` on a database without our schema."""
    return Program(tmp_path, empty_dsn)


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """`jobrunner` with nothing configured, and an embedded PostgreSQL of its own that is destroyed afterwards."""
    (tmp_path / "project").mkdir()
    program = Program(tmp_path / "project", None)
    yield program
    program("db", "destroy", "--yes")


def test_upgrade_shows_then_does_then_has_nothing_to_do(empty):
    """--dry-run prints the SQL and changes nothing; upgrade runs it; a second one says so."""
    head = migrate.version(empty.dsn).head
    said = empty("db", "upgrade", "--dry-run")
    assert "CREATE TABLE jobrunner.jobs" in said.out
    assert f"no schema; {PENDING}" in said.err
    assert "target:" not in said.err
    assert migrate.version(empty.dsn).current is None
    assert f"upgraded: ran {', '.join(ours())}; the schema is at {head}" in empty("db", "upgrade").err
    assert set(empty("db", "upgrade", "--json").json) == VERSION_KEYS | {"ran"}
    assert empty("db", "upgrade", "--dry-run").out == ""


def test_upgrade_to_a_revision_that_does_not_exist(empty):
    """2, with the ones that do."""
    said = empty("db", "upgrade", "--to", "nine", ok=None)
    assert said.code == 2
    assert f"error: --to nine: there is no such revision to upgrade to\n  pending: {', '.join(ours())}" in said.err


def test_current(empty):
    """The version and what is to be done, or none."""
    assert empty("db", "current").out == f"none  ({PENDING})\n"
    migrate.upgrade(empty.dsn)
    assert empty("db", "current").out == f"{HEAD}  (up to date)\n"
    assert empty("db", "current", "--json").json == {"current": HEAD, "head": HEAD, "pending": [], "known": True, "up_to_date": True}


def test_check_tells_what_somebody_changed(tmp_path, fresh_dsn):
    """0 for the schema as it was made; 1 and one line for each difference, missing, foreign and changed."""
    program = Program(tmp_path, fresh_dsn)
    assert program("db", "check").err.startswith("ok: the schema is at ")
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE jobrunner.jobs ADD COLUMN mine int, ALTER COLUMN tags DROP NOT NULL")
        connection.execute("DROP INDEX jobrunner.jobs_running")
        connection.execute("CREATE TABLE jobrunner.foreign_one (id int)")
        connection.execute("ALTER TABLE jobrunner.job_history DISABLE TRIGGER job_history_count")
    said = program("db", "check", ok=None)
    assert said.code == 1
    assert len(said.lines()) == 5
    for name in ("mine", "tags", "jobs_running", "foreign_one", "it is disabled, expected enabled"):
        assert [line for line in said.lines() if name in line], said.out
    assert "but has 5 differences" in said.err
    assert len(program("db", "check", "--json", ok=None).json["differences"]) == 5


def test_check_does_not_depend_on_the_name_of_the_role(tmp_path, server):
    """A login named like our schema has it as its default one; nothing is missing for all that."""
    with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
        exists = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = 'jobrunner'").fetchone()
        if not exists:
            admin.execute("CREATE ROLE jobrunner SUPERUSER LOGIN")
    with server.temporary() as dsn:
        separator = "&" if "?" in dsn else "?"
        program = Program(tmp_path, f"{dsn}{separator}user=jobrunner")
        assert program("db", "check").code == 0


def test_sql_needs_no_connection(tmp_path, empty_dsn):
    """The SQL of the migrations alone makes the schema; a revision that does not exist is 2."""
    program = Program(tmp_path, "postgresql://nobody@127.0.0.1:1/none")
    text = program("db", "sql").out
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(text.encode())
    assert migrate.version(empty_dsn).up_to_date
    later = program("db", "sql", "--from", ours()[0]).out
    assert "CREATE TABLE jobrunner.jobs (" in text
    assert later.strip().startswith("BEGIN")
    assert "CREATE TABLE jobrunner.jobs (" not in later
    assert program("db", "sql", "--from", HEAD).out.strip() == ""
    assert program("db", "sql", "--to", "nine", ok=None).code == 2


def test_the_life_of_the_embedded_postgresql(embedded):
    """Nothing configured: status, start, use, stop and destroy a private server, and say each time that it is used."""
    status = embedded("db", "status", "--json").json
    assert set(status) == CLUSTER_KEYS
    assert status["running"] is False
    dsn = embedded("db", "start").out.strip()
    assert dsn == status["dsn"]
    said = embedded("db", "upgrade")
    assert f"no database is configured: using the embedded PostgreSQL, {dsn}\n" in said.err
    assert embedded("jobs", "list").err == f"no database is configured: using the embedded PostgreSQL, {dsn}\nthere is no job yet\n"
    assert "running, process" in embedded("db", "status").out
    assert embedded("db", "stop").err == "stopped\n"
    assert embedded("db", "stop").err == "it was not running\n"
    assert embedded("db", "stop", "--json").json["stopped"] is False
    assert "stopped" in embedded("db", "status").out
    assert embedded("db", "destroy", "--yes", "--json").json["destroyed"] is True
    assert embedded("db", "destroy", "--yes").err.endswith("there was none\n")


def test_a_look_starts_nothing(embedded):
    """`doctor` says that there is no database and how to get one; it looks at the embedded PostgreSQL only when that runs already."""
    said = embedded("doctor", "--setup", "--json", ok=None)
    [finding] = [check for check in said.json["checks"] if check["code"] == "database"]
    assert (said.code, said.json["target"], finding["state"]) == (1, None, "bad")
    assert "jobrunner db start" in finding["fix"]
    status = embedded("db", "status", "--json").json
    assert (status["running"], status["size_bytes"]) == (False, 0)
    embedded("db", "start")
    checks = {check["code"]: check for check in embedded("doctor", "--setup", "--json", ok=None).json["checks"]}
    assert checks["database"]["state"] == "ok"
    assert "the embedded PostgreSQL" in checks["database"]["text"]


def test_destroy_asks_on_a_terminal(embedded):
    """A person is asked; no is 7 and removes nothing, yes removes."""
    embedded("db", "start")
    code, shown = embedded.on_terminal("db", "destroy", keys="n\n")
    assert code == 7
    assert "remove it with every job in it?" in shown
    assert embedded("db", "status", "--json").json["size_bytes"] > 0
    assert embedded.on_terminal("db", "destroy", keys="y\n")[0] == 0
    assert embedded("db", "status", "--json").json["size_bytes"] == 0


def test_start_warns_when_another_database_is_configured(embedded):
    """Starting the embedded server beside a configured database is allowed, and said to be of no effect."""
    said = embedded("db", "start", env={"DATABASE_URL": "postgresql://shop@db/orders"})
    assert "warning: DATABASE_URL names a database (shop@db:5432/orders): commands use that one, not the embedded one\n" in said.err


def test_dev_prepares_the_embedded_database(embedded):
    """`dev` with nothing configured starts and upgrades its own server before anything else: one command from nothing to pages."""
    from tests.cli.test_work_status import free_port
    from tests.support.cli import APP

    (embedded.home / "app.py").write_text(APP)
    with embedded.started("dev", "--port", free_port()) as dev:
        dev.wait_for("worker started")
        assert f"schema upgraded: ran {', '.join(ours())}" in dev.err
        assert dev.stop() == 0
