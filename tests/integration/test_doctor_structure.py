"""The doctor finds what was changed in the schema, and the SQL that it prints makes it whole again."""

from __future__ import annotations

import psycopg
import pytest

from jobrunner import migrate
from tests.support.doctoring import examined, mend
from tests.support.workers import insert, rows

pytestmark = pytest.mark.needs("psql")

# The same columns, but a lost worker looks alive.
V_WORKERS = """
DO $$ BEGIN
    EXECUTE 'CREATE OR REPLACE VIEW jobrunner.v_workers AS ' || replace(pg_get_viewdef('jobrunner.v_workers'), $x$'lost'::text$x$, $x$'alive'::text$x$);
END $$"""

# what somebody does → code and state of what is found
BREAKS = {
    "DROP INDEX jobrunner.jobs_claim": ("missing_index", "bad"),
    "DROP INDEX jobrunner.job_history_task": ("missing_index", "bad"),
    "DROP INDEX jobrunner.jobs_running; CREATE INDEX jobs_running ON jobrunner.jobs (worker_id)": ("drift", "bad"),
    "DROP INDEX jobrunner.jobs_unique; CREATE INDEX jobs_unique ON jobrunner.jobs (task, unique_key)": ("drift", "bad"),
    "CREATE INDEX mine ON jobrunner.jobs (created_at)": ("drift", "note"),
    "CREATE INDEX mine ON jobrunner.job_history (created_at)": ("drift", "note"),
    "ALTER TABLE jobrunner.jobs ALTER queue DROP NOT NULL": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs ALTER max_attempts SET DEFAULT 1": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs ALTER max_attempts DROP DEFAULT": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs ALTER id DROP IDENTITY": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs ALTER claimed_at SET DEFAULT now()": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs ADD COLUMN tenant text": ("drift", "note"),
    "ALTER TABLE jobrunner.jobs DROP COLUMN claimed_at": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs DROP CONSTRAINT jobs_names": ("drift", "bad"),
    "ALTER TABLE jobrunner.job_history DROP CONSTRAINT job_history_state": ("drift", "bad"),
    "ALTER TABLE jobrunner.worker_runs DROP CONSTRAINT worker_runs_pkey": ("drift", "bad"),
    "ALTER TABLE jobrunner.jobs ADD CONSTRAINT mine CHECK (id > 0)": ("drift", "note"),
    "ALTER TABLE jobrunner.workers DROP CONSTRAINT workers_kind, ADD CONSTRAINT workers_kind CHECK (kind <> '')": ("drift", "bad"),
    "DROP VIEW jobrunner.v_queues": ("drift", "bad"),
    V_WORKERS: ("drift", "bad"),
    "CREATE VIEW jobrunner.v_mine AS SELECT 1 AS one": ("drift", "note"),
    "DROP FUNCTION jobrunner.ensure_partitions": ("drift", "bad"),
    "CREATE OR REPLACE FUNCTION jobrunner.ensure_partitions(ahead integer) RETURNS integer LANGUAGE sql AS 'SELECT 0'": ("drift", "bad"),
    "ALTER FUNCTION jobrunner.ensure_partitions SECURITY DEFINER": ("drift", "bad"),
    "CREATE FUNCTION jobrunner.mine(a text, b text) RETURNS integer LANGUAGE sql AS 'SELECT 0'": ("drift", "note"),
    "DROP TABLE jobrunner.worker_runs CASCADE": ("drift", "bad"),
    "DROP TABLE jobrunner.job_logs CASCADE": ("drift", "bad"),
    "CREATE TABLE jobrunner.mine (id int PRIMARY KEY, other int UNIQUE)": ("drift", "note"),
    "DROP TABLE jobrunner.job_history_default": ("drift", "bad"),
}


def drifted(dsn):
    """All findings about the shape of the schema that are not ok."""
    found = examined(dsn).findings
    return [each for each in found if each.code in {"drift", "missing_index", "invalid_index"}]


@pytest.mark.parametrize(("change", "expected"), BREAKS.items(), ids=[change[:70] for change in BREAKS])
def test_what_is_printed_makes_the_schema_whole(fresh_dsn, change, expected):
    """Each difference is found, bad unless it is only one more thing, and after its SQL the schema is as expected."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(change)
    found = drifted(fresh_dsn)
    assert (found[0].code, found[0].state) == expected
    for finding in found:
        mend(fresh_dsn, finding)
    assert migrate.drift(fresh_dsn) == []
    assert examined(fresh_dsn).one("structure").state == "ok"


def test_a_rebuild_that_was_broken_off(fresh_dsn):
    """REINDEX CONCURRENTLY that waited for somebody and gave up leaves an invalid index beside ours: dropped as printed."""
    with psycopg.connect(fresh_dsn) as other, psycopg.connect(fresh_dsn, autocommit=True) as connection:
        other.execute("INSERT INTO jobrunner.jobs (task) VALUES ('t')")
        connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute("REINDEX INDEX CONCURRENTLY jobrunner.jobs_claim")
    found = drifted(fresh_dsn)
    assert {each.code for each in found} == {"invalid_index", "drift"}
    for finding in found[:1]:
        mend(fresh_dsn, finding)
    assert drifted(fresh_dsn) == []


def test_a_unique_index_that_met_duplicates(fresh_dsn):
    """Its build failed and left an invalid index that slows every insert: it is not ours, and is dropped as printed."""
    insert(fresh_dsn, "same", 2)
    with psycopg.connect(fresh_dsn, autocommit=True) as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("CREATE UNIQUE INDEX CONCURRENTLY mine ON jobrunner.jobs (task)")
    assert rows(fresh_dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'jobrunner.mine'::regclass") == [(False,)]
    finding = examined(fresh_dsn).one("invalid_index")
    assert (finding.state, finding.data["name"], finding.fix) == ("bad", "mine", "DROP INDEX CONCURRENTLY jobrunner.mine;")
    mend(fresh_dsn, finding)
    assert examined(fresh_dsn).one("structure").state == "ok"


def test_an_invalid_index_of_ours(fresh_dsn):
    """The claim's index, whose build was broken off, is bad, and built anew as printed."""
    with psycopg.connect(fresh_dsn) as other, psycopg.connect(fresh_dsn, autocommit=True) as connection:
        ((definition,),) = connection.execute("SELECT pg_get_indexdef('jobrunner.jobs_claim'::regclass)").fetchall()
        connection.execute("DROP INDEX jobrunner.jobs_claim")
        other.execute("INSERT INTO jobrunner.jobs (task) VALUES ('t')")
        connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute(definition.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY"))
    finding = examined(fresh_dsn).one("invalid_index")
    assert (finding.state, finding.fix) == ("bad", "REINDEX INDEX CONCURRENTLY jobrunner.jobs_claim;")
    mend(fresh_dsn, finding)
    assert examined(fresh_dsn).one("structure").state == "ok"


def test_a_type_that_was_changed(fresh_dsn):
    """That cannot be undone under the views that read it: what it should be is told instead of a command that fails."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE jobrunner.jobs ALTER claimed_at TYPE timestamp")
    finding = examined(fresh_dsn).one("drift")
    assert finding.state == "bad"
    assert "jobrunner.jobs.claimed_at should be timestamp with time zone" in finding.fix
