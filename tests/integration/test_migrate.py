"""Upgrades: from nothing, twice, many at once, killed, locked out, without the right; and the refusals of a schema that does not fit."""

from __future__ import annotations

import secrets
import signal

import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg import sql

from jobrunner import drift, migrate
from jobrunner.errors import JobrunnerError, SchemaError, SchemaMissing, SchemaOutdated, SchemaTooNew
from jobrunner.settings import describe_target, parse_dsn
from tests.support.commands import run
from tests.support.revisions import added, directory_with, ours, start_upgrade, use
from tests.support.waiting import wait_until

PROCESSES = 8
SECONDS = 60
HEAD = ours()[-1]
NEXT, AFTER_NEXT = added(2)

ADD_COLUMN = """
op.execute("SET LOCAL lock_timeout = '20ms'")
op.execute("ALTER TABLE jobrunner.jobs ADD COLUMN more integer")
"""
MAKE_TABLE = 'op.execute("CREATE TABLE jobrunner.half (id integer)")'
MAKE_TABLE_SLOWLY = MAKE_TABLE + '\nop.execute("SELECT pg_sleep(600)")'
INDEX_CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.execute("CREATE INDEX CONCURRENTLY more ON jobrunner.jobs (parent_id)")
"""


@pytest.fixture
def admin(empty_dsn):
    """A connection to `empty_dsn`, autocommit."""
    with psycopg.connect(empty_dsn, autocommit=True) as opened:
        yield opened


@pytest.fixture
def plain_user(server, empty_dsn):
    """The address of `empty_dsn` for a role without any right; the role is dropped with the database's grants."""
    name = f"jobrunner_plain_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'plain'").format(role))
        yield parse_dsn(psycopg.conninfo.make_conninfo(empty_dsn, user=name, password="plain"), "test").url
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def role_of(dsn):
    """The role that an address names."""
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["user"])


def sessions(connection):
    """How many sessions of upgrades there are on this database."""
    return connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobrunner-migrate'"
    ).fetchone()[0]


def outputs(processes):
    """What each printed, after it ended well."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        found.append(out.strip())
    return found


def test_upgrade_from_nothing_then_again(empty_dsn):
    """The first upgrade runs every revision, the second none."""
    before = migrate.version(empty_dsn)
    assert (before.current, before.known, before.up_to_date) == (None, True, False)
    assert migrate.upgrade(empty_dsn) == before.pending
    assert migrate.check(empty_dsn).pending == ()
    assert migrate.upgrade(empty_dsn) == ()


def test_many_processes_upgrade_at_once(empty_dsn, admin):
    """Of eight upgrades that wait for the same lock, exactly one runs the revisions, and all succeed."""
    with psycopg.connect(empty_dsn) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(%s)", (migrate._UPGRADE_LOCK,))
        processes = [start_upgrade(empty_dsn) for _ in range(PROCESSES)]
        wait_until(lambda: sessions(admin) == PROCESSES, timeout=SECONDS, what="all upgrades waiting")
    revisions = " ".join(migrate._revisions())
    assert sorted(outputs(processes)) == [""] * (PROCESSES - 1) + [revisions]
    assert migrate.drift(empty_dsn) == []


def test_waiting_upgrades_do_not_hold_up_a_concurrent_index_build(empty_dsn, admin, tmp_path):
    """Late comers keep no snapshot: an index built concurrently by the first does not wait for them while they wait for it."""
    migrate.upgrade(empty_dsn)
    directory = directory_with(tmp_path / "migrations", INDEX_CONCURRENTLY)
    with psycopg.connect(empty_dsn) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(%s)", (migrate._UPGRADE_LOCK,))
        processes = [start_upgrade(empty_dsn, directory) for _ in range(3)]
        wait_until(lambda: sessions(admin) == 3, timeout=SECONDS, what="all upgrades waiting")
    assert sorted(outputs(processes)) == ["", "", NEXT]


def test_a_killed_upgrade_leaves_a_whole_revision_and_can_be_run_again(empty_dsn, admin, tmp_path):
    """kill -9 in the middle of a revision undoes that revision; the next upgrade waits for the dead one's locks and goes on."""
    slow = directory_with(tmp_path / "slow", MAKE_TABLE_SLOWLY)
    process = start_upgrade(empty_dsn, slow)
    wait_until(
        lambda: (
            admin.execute("SELECT FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'").fetchone() is not None
        ),
        timeout=SECONDS,
        what="in the middle of the revision",
    )
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert migrate.version(empty_dsn).current == HEAD
    assert admin.execute("SELECT to_regclass('jobrunner.half')").fetchone() == (None,)
    assert outputs([start_upgrade(empty_dsn, directory_with(tmp_path / "quick", MAKE_TABLE))]) == [NEXT]
    assert migrate.drift(empty_dsn) == ["table half is not one of ours"]


def test_an_upgrade_gives_way_to_a_lock_and_tries_again(fresh_dsn, monkeypatch, tmp_path):
    """A revision that meets a lock stops waiting, lets others pass, and is run again when the lock is gone."""
    use(monkeypatch, directory_with(tmp_path / "migrations", ADD_COLUMN))
    pauses = []
    with psycopg.connect(fresh_dsn) as report:
        report.execute("SELECT count(*) FROM jobrunner.jobs")

        def pause(seconds):
            pauses.append(seconds)
            if len(pauses) == 2:
                report.rollback()

        monkeypatch.setattr(migrate, "_pause", pause)
        assert migrate.upgrade(fresh_dsn) == (NEXT,)
    assert len(pauses) == 2


def test_an_upgrade_that_is_locked_out_says_by_whom(fresh_dsn, monkeypatch, tmp_path):
    """After its attempts the upgrade gives up with the sessions that hold the locks, and the schema is as before."""
    use(monkeypatch, directory_with(tmp_path / "migrations", ADD_COLUMN))
    monkeypatch.setattr(migrate, "_pause", lambda _: None)
    monkeypatch.setattr(migrate, "LOCK_ATTEMPTS", 3)
    with psycopg.connect(fresh_dsn, application_name="long-report") as report:
        report.execute("SELECT count(*) FROM jobrunner.jobs")
        with pytest.raises(SchemaError, match=f"after 3 attempts.*pid {report.info.backend_pid}, long-report, idle in transaction since"):
            migrate.upgrade(fresh_dsn)
    assert migrate.version(fresh_dsn).current == HEAD


def test_a_role_with_short_timeouts_can_upgrade(admin, plain_user, tmp_path):
    """Time-outs that a role has for its queries do not end an upgrade, neither its statements nor the waiting lock."""
    name = role_of(plain_user)
    for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
        admin.execute(sql.SQL("ALTER ROLE {} SET {} = '2s'").format(sql.Identifier(name), sql.SQL(setting)))
    admin.execute(sql.SQL("CREATE SCHEMA jobrunner AUTHORIZATION {}").format(sql.Identifier(name)))
    directory = directory_with(tmp_path / "migrations", 'op.execute("SELECT pg_sleep(2.5)")')
    assert outputs([start_upgrade(plain_user, directory)]) == [" ".join([*ours(), NEXT])]


def test_a_user_without_rights_is_told_what_is_missing(empty_dsn, plain_user):
    """No right to make the schema, to read it, or to change it: one error of ours each, with who was refused and the grant."""
    with pytest.raises(JobrunnerError, match="permission denied for database") as caught:
        migrate.upgrade(plain_user)
    assert describe_target(plain_user) in str(caught.value)
    assert "CREATE SCHEMA jobrunner AUTHORIZATION" in caught.value.hint
    migrate.upgrade(empty_dsn)
    for question in (migrate.version, migrate.check, migrate.drift, migrate.upgrade):
        with pytest.raises(SchemaError, match="permission denied for schema jobrunner"):
            question(plain_user)


def test_a_user_who_may_only_read_can_check(empty_dsn, admin, plain_user):
    """Reading the schema's version needs no more than the right to read it; comparing it needs temporary tables, no more."""
    migrate.upgrade(empty_dsn)
    role = sql.Identifier(role_of(plain_user))
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA jobrunner TO {}").format(role))
    admin.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA jobrunner TO {}").format(role))
    assert migrate.check(plain_user).up_to_date
    assert migrate.drift(plain_user) == []
    admin.execute("DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$")
    with pytest.raises(SchemaError, match="temporary tables") as caught:
        migrate.drift(plain_user)
    assert "GRANT TEMPORARY" in caught.value.hint


def test_a_read_only_server_is_told_apart(fresh_dsn):
    """On a server that only reads, the upgrade is refused with the advice to take the primary."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM jobrunner.alembic_version")
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$"
        )
    with pytest.raises(SchemaError, match="read-only") as caught:
        migrate.upgrade(fresh_dsn)
    assert "primary" in caught.value.hint


def test_a_missing_schema_is_refused(empty_dsn):
    """A database without our schema is refused by name, with the command that makes it."""
    with pytest.raises(SchemaMissing) as caught:
        migrate.check(empty_dsn)
    assert str(caught.value) == f'schema "jobrunner" does not exist in {describe_target(empty_dsn)}'
    assert caught.value.hint == "run:   jobrunner db upgrade"


def test_an_outdated_schema_is_refused(fresh_dsn, monkeypatch, tmp_path):
    """A schema older than the program is refused with both versions and how many revisions are missing."""
    use(monkeypatch, directory_with(tmp_path / "migrations", MAKE_TABLE, "pass"))
    with pytest.raises(SchemaOutdated) as caught:
        migrate.check(fresh_dsn)
    assert str(caught.value) == f'schema "jobrunner" is at version {HEAD}, this program needs {AFTER_NEXT} (2 migrations to run)'
    assert migrate.upgrade(fresh_dsn, NEXT) == (NEXT,)
    assert migrate.version(fresh_dsn).pending == (AFTER_NEXT,)


def test_a_newer_schema_is_refused_and_left_alone(fresh_dsn):
    """A revision that this program does not know is refused by the check and by the upgrade, which changes nothing."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("UPDATE jobrunner.alembic_version SET version_num = '0099'")
    for question in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaTooNew) as caught:
            question(fresh_dsn)
        head = migrate._revisions()[-1]
        assert str(caught.value) == f'schema "jobrunner" is at version 0099, newer than this program knows ({head})'
    assert migrate.version(fresh_dsn).current == "0099"


def test_downgrade_to_base_removes_everything(fresh_dsn):
    """Nothing of ours stays behind, schema and version table included, and an upgrade makes it anew."""
    migrate.downgrade(fresh_dsn, "base")
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("SELECT to_regnamespace('jobrunner')").fetchone() == (None,)
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'job%' OR relname = 'workers'").fetchone() == (0,)
    assert migrate.upgrade(fresh_dsn)
    assert migrate.drift(fresh_dsn) == []


STORAGE = "SELECT relname, reloptions FROM pg_class WHERE relnamespace = :namespace"  # no drift: an operator may tune it


def described(dsn):
    """Every table, column, constraint, index, view, function and storage parameter of ours, as the server describes it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        (namespace,) = connection.execute("SELECT to_regnamespace('jobrunner')::oid").fetchall()[0]
        queries = (drift._RELATIONS, drift._COLUMNS, drift._CONSTRAINTS, drift._INDEXES, drift._VIEWS, drift._FUNCTIONS, STORAGE)
        return [sorted(connection.execute(query.replace(":namespace", str(namespace))).fetchall(), key=str) for query in queries]


@pytest.mark.parametrize("step", range(1, len(ours())), ids=lambda step: ours()[step])
def test_each_revision_can_be_undone_alone_and_keeps_the_jobs(empty_dsn, admin, step):
    """One step up and down again leaves the tables, views and functions of before, and the jobs in them."""
    before, revision = ours()[step - 1], ours()[step]
    migrate.upgrade(empty_dsn, before)
    number = admin.execute("INSERT INTO jobrunner.jobs (task) VALUES ('add') RETURNING id").fetchone()
    expected = described(empty_dsn)
    assert migrate.upgrade(empty_dsn, revision) == (revision,)
    assert described(empty_dsn) != expected
    migrate.downgrade(empty_dsn, before)
    assert described(empty_dsn) == expected
    assert admin.execute("SELECT id FROM jobrunner.v_jobs").fetchall() == [number]
    migrate.upgrade(empty_dsn)
    assert migrate.drift(empty_dsn) == []


@pytest.mark.parametrize("step", range(1, len(ours())), ids=lambda step: ours()[step])
def test_each_revision_gives_way_to_a_reader(empty_dsn, monkeypatch, step):
    """A report that holds the table of jobs is not waited for longer than the lock_timeout; when it has ended, the revision runs."""
    migrate.upgrade(empty_dsn, ours()[step - 1])
    with psycopg.connect(empty_dsn) as report:
        report.execute("SELECT count(*) FROM jobrunner.jobs")
        monkeypatch.setattr(migrate, "_pause", lambda _: report.rollback())
        assert migrate.upgrade(empty_dsn, ours()[step]) == (ours()[step],)


def test_downgrade_keeps_what_is_not_ours(fresh_dsn):
    """A table that somebody put into our schema survives, and the schema with it."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE jobrunner.theirs AS SELECT 1 AS id")
        migrate.downgrade(fresh_dsn, "base")
        assert connection.execute("SELECT id FROM jobrunner.theirs").fetchone() == (1,)


@pytest.mark.needs("psql")
def test_the_printed_sql_makes_the_same_schema(empty_dsn, tmp_path):
    """psql applies the output of `as_sql` to an empty database without an error, and the result is what an upgrade makes."""
    script = tmp_path / "upgrade.sql"
    script.write_text(migrate.as_sql())
    said = run("psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-f", script, empty_dsn, cwd=tmp_path)
    assert said.stderr == ""
    assert migrate.check(empty_dsn).up_to_date
    assert migrate.drift(empty_dsn) == []
    assert migrate.upgrade(empty_dsn) == ()
    assert migrate.as_sql(migrate._revisions()[-1]).strip() == ""


def test_known_revisions_are_those_that_alembic_reads():
    """The revisions known from the files' names are the ones in the files, in their order."""
    script = ScriptDirectory(str(migrate.migrations_dir()))
    assert migrate._revisions() == [step.revision for step in reversed(list(script.walk_revisions()))]
