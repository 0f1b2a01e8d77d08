"""The comparison of a database with what the program expects: nothing on a right one, one sentence for each difference."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from jobrunner import migrate

CHANGED = "its definition is not the expected one"
UNIQUE = "btree (task, unique_key) WHERE (unique_key IS NOT NULL)"
KINDS = "CHECK ((kind = ANY (ARRAY['daemon'::text, 'cron'::text, 'drain'::text, 'embedded'::text, 'test'::text, 'consumer'::text])))"
TRIGGER = (
    "CREATE TRIGGER job_history_count AFTER INSERT ON job_history REFERENCING NEW TABLE AS ended FOR EACH STATEMENT"
    " EXECUTE FUNCTION count_history()"
)
# The same columns, but a lost worker looks alive.
V_WORKERS = """
DO $$ BEGIN
    EXECUTE 'CREATE OR REPLACE VIEW jobrunner.v_workers AS ' || replace(pg_get_viewdef('jobrunner.v_workers'), $x$'lost'::text$x$, $x$'alive'::text$x$);
END $$"""

# what somebody does → what is said, a line each
BREAKS = {
    "DROP INDEX jobrunner.jobs_claim": "index jobs_claim of jobs is missing",
    "DROP INDEX jobrunner.jobs_running; CREATE INDEX jobs_running ON jobrunner.jobs (worker_id)": """
        index jobs_running of jobs was changed: it is btree (worker_id), expected btree (worker_id) WHERE (state = 'running'::text)""",
    "DROP INDEX jobrunner.jobs_unique; CREATE INDEX jobs_unique ON jobrunner.jobs (task, unique_key)": f"""
        index jobs_unique of jobs was changed: it is btree (task, unique_key), expected unique {UNIQUE}
    """,
    "CREATE INDEX mine ON jobrunner.jobs (created_at)": "index mine of jobs is not one of ours",
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'jobrunner.jobs_claim'::regclass": """
        index jobs_claim is invalid, its build was broken off; to mend it: REINDEX INDEX CONCURRENTLY jobrunner.jobs_claim""",
    "ALTER TABLE jobrunner.jobs ALTER claimed_at TYPE timestamp": """
        column claimed_at of jobs was changed: it is timestamp without time zone, expected timestamp with time zone""",
    "ALTER TABLE jobrunner.jobs ALTER queue DROP NOT NULL": "column queue of jobs was changed: it is nullable, expected not null",
    "ALTER TABLE jobrunner.jobs ALTER max_attempts SET DEFAULT 1": """
        column max_attempts of jobs was changed: it is default 1, expected default 5""",
    "ALTER TABLE jobrunner.jobs ADD COLUMN tenant text": "column tenant of jobs is not one of ours",
    "ALTER TABLE jobrunner.jobs DROP COLUMN claimed_at": """
        column claimed_at of jobs is missing
        constraint jobs_queued_shape of jobs is missing
        constraint jobs_running_shape of jobs is missing""",
    "ALTER TABLE jobrunner.jobs DROP CONSTRAINT jobs_names": "constraint jobs_names of jobs is missing",
    "ALTER TABLE jobrunner.workers DROP CONSTRAINT workers_kind, ADD CONSTRAINT workers_kind CHECK (kind <> '')": f"""
        constraint workers_kind of workers was changed: it is CHECK ((kind <> ''::text)), expected {KINDS}""",
    "DROP VIEW jobrunner.v_queues": "view v_queues is missing",
    V_WORKERS: f"view v_workers was changed: {CHANGED}",
    "CREATE VIEW jobrunner.v_mine AS SELECT 1 AS one": "view v_mine is not one of ours",
    "DROP FUNCTION jobrunner.ensure_partitions": "function ensure_partitions(integer) is missing",
    "DROP FUNCTION jobrunner.drop_partitions": "function drop_partitions(text, timestamp with time zone, integer) is missing",
    "CREATE OR REPLACE FUNCTION jobrunner.ensure_partitions(ahead integer) RETURNS integer LANGUAGE sql AS 'SELECT 0'": f"""
        function ensure_partitions(integer) was changed: {CHANGED}""",
    "ALTER FUNCTION jobrunner.ensure_partitions SECURITY DEFINER": f"function ensure_partitions(integer) was changed: {CHANGED}",
    "DROP TRIGGER job_history_count ON jobrunner.job_history": "trigger job_history_count of job_history is missing",
    "ALTER TABLE jobrunner.job_attempts DISABLE TRIGGER job_attempts_count": """
        trigger job_attempts_count of job_attempts was changed: it is disabled, expected enabled""",
    "DROP TRIGGER job_history_count ON jobrunner.job_history; CREATE TRIGGER job_history_count AFTER INSERT OR UPDATE ON jobrunner.job_history"
    " EXECUTE FUNCTION jobrunner.count_history()": f"""
        trigger job_history_count of job_history was changed: it is CREATE TRIGGER job_history_count AFTER INSERT OR UPDATE ON job_history \
FOR EACH STATEMENT EXECUTE FUNCTION count_history(), expected {TRIGGER}""",
    "CREATE TRIGGER mine BEFORE DELETE ON jobrunner.jobs EXECUTE FUNCTION suppress_redundant_updates_trigger()": """
        trigger mine of jobs is not one of ours""",
    "CREATE OR REPLACE FUNCTION jobrunner.count_history() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'": f"""
        function count_history() was changed: {CHANGED}""",
    "DROP TABLE jobrunner.rollup_hour CASCADE": """
        table rollup_hour is missing
        view v_throughput_hourly is missing""",
    "DROP TABLE jobrunner.rollup_minute_default": """
        table rollup_minute has no default partition, so an insert for a day without a partition fails""",
    "DROP TABLE jobrunner.workers CASCADE": """
        table workers is missing
        view v_queues is missing
        view v_workers is missing""",
    "DROP TABLE jobrunner.worker_runs CASCADE": """
        table worker_runs is missing
        view v_worker_runs is missing""",
    "DROP TABLE jobrunner.retention CASCADE": """
        table retention is missing
        view v_retention is missing""",
    "DROP FUNCTION jobrunner.keep_of": "function keep_of(text, text) is missing",
    "CREATE TABLE jobrunner.job_history_20260101_kept (id int)": "",  # what retention copies of a day
    "CREATE TABLE jobrunner.job_history_2026_kept (id int)": "table job_history_2026_kept is not one of ours",
    "DROP INDEX jobrunner.workers_pool_slot": "index workers_pool_slot of workers is missing",
    "CREATE TABLE jobrunner.mine (id int PRIMARY KEY, other int UNIQUE)": "table mine is not one of ours",
    "DROP TABLE jobrunner.job_history_default": """
        table job_history has no default partition, so an insert for a day without a partition fails""",
    "DROP TABLE jobrunner.job_logs_default": "table job_logs has no default partition, so an insert for a day without a partition fails",
    "DROP SCHEMA jobrunner CASCADE": "schema jobrunner is missing",
}


@pytest.mark.parametrize(("change", "said"), BREAKS.items(), ids=[change[:60] for change in BREAKS])
def test_each_difference_is_one_sentence(fresh_dsn, change, said):
    """What somebody changed by hand is named, with what it is and what it should be, and nothing else is."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(change)
    assert migrate.drift(fresh_dsn) == [line.strip() for line in said.strip().splitlines()]


def test_a_partition_with_an_invalid_index_is_found(fresh_dsn):
    """An index of a single day that was not built to its end is named as well."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'jobrunner.job_history_default_pkey'::regclass")
    (sentence,) = migrate.drift(fresh_dsn)
    assert sentence.startswith("index job_history_default_pkey is invalid")


@pytest.mark.parametrize("search_path", ["jobrunner, public", "''", "public"])
def test_nobodys_search_path_matters(fresh_dsn, search_path):
    """The comparison is the same when the role's search_path shows our schema first, or nothing."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET search_path = " + search_path).format(sql.Identifier(connection.info.dbname)))
    assert migrate.drift(fresh_dsn) == []


def test_comparing_leaves_nothing_behind_and_waits_for_no_job(fresh_dsn):
    """Live rows may be locked meanwhile, and no temporary object outlives the comparison."""
    with psycopg.connect(fresh_dsn) as busy, psycopg.connect(fresh_dsn, autocommit=True) as connection:
        busy.execute("INSERT INTO jobrunner.jobs (task) VALUES ('add')")
        busy.execute("LOCK TABLE jobrunner.jobs IN SHARE ROW EXCLUSIVE MODE")
        assert migrate.drift(fresh_dsn) == []
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname = 'jobs'").fetchone() == (1,)
