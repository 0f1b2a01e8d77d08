"""Ordering keys and expiry of jobs, and workers that take messages.

Revision 0007. Safe before the new code: the columns are nullable and without defaults, the view only grows at its end, and the indexes hold
nothing but the rows that use them; they are built beside whoever writes jobs. Workers of the previous release do not know the order: give
jobs keys when all workers are of this one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COLUMNS = """
    ADD COLUMN IF NOT EXISTS ordering_key text,
    ADD COLUMN IF NOT EXISTS expires_at   timestamptz
"""
# An index key of PostgreSQL ends at about 2,700 bytes: a message that names the column is better than one about a page.
AGAIN = "ALTER TABLE jobrunner.jobs DROP CONSTRAINT IF EXISTS jobs_ordering_key, DROP CONSTRAINT IF EXISTS jobs_expires_at"
CHECK = """
ALTER TABLE jobrunner.jobs
    ADD CONSTRAINT jobs_ordering_key CHECK (char_length(ordering_key) >= 1 AND char_length(ordering_key) <= 500),
    ADD CONSTRAINT jobs_expires_at CHECK (expires_at >= '1970-01-01 00:00+00' AND expires_at < '9999-01-01 00:00+00')
"""
# Tables that are about to take a day's place have the day's columns.
KEPT = f"""
DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN SELECT c.oid FROM pg_class c
                WHERE c.relkind = 'r' AND c.relnamespace = 'jobrunner'::regnamespace AND c.relname ~ '^job_history_[0-9]{{8}}_kept$' LOOP
        EXECUTE format('ALTER TABLE %s {" ".join(COLUMNS.split())}', part);
    END LOOP;
END $$
"""  # noqa: S608  names of this file only
KINDS = ("daemon", "cron", "drain", "embedded", "test")

INDEXES = {
    # Which job of a key is next: the oldest that is not finished.
    "jobs_ordered": "INDEX{} ON jobrunner.jobs (queue, ordering_key, id) WHERE ordering_key IS NOT NULL",
    # The last word: two jobs of a key never run at once, whatever the snapshots of two claims saw. The same columns first as in the index
    # above: then no statistics make that one look cheaper for the one that runs of a key, which would go through all that wait.
    "jobs_ordered_running": "UNIQUE INDEX{} ON jobrunner.jobs (queue, ordering_key) WHERE state = 'running' AND ordering_key IS NOT NULL",
    "jobs_expiring": "INDEX{} ON jobrunner.jobs (expires_at) WHERE state = 'queued' AND expires_at IS NOT NULL",
}

VIEWS = {
    "v_jobs": """
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key,
       CASE WHEN state = 'running' THEN 'running'
            WHEN attempt > 0 THEN 'retrying'
            WHEN run_at > now() THEN 'scheduled'
            ELSE 'queued' END AS state,
       created_at, run_at, started_at, NULL::timestamptz AS finished_at,
       attempt, max_attempts, crash_count, max_crashes, time_limit,
       last_error_type AS error_type, last_error AS error, last_error_at AS error_at,
       NULL::jsonb AS result, NULL::bigint AS wait_ms, NULL::bigint AS run_ms, NULL::bigint AS cpu_ms,
       worker_id, lease, cancel_requested_at,
       soft_time_limit, cpu_limit, memory_limit, memory_limit_on_retry, output_limit, max_processes,
       progress, progress_text, checkpoint, NULL::bigint AS peak_memory, ordering_key, expires_at
FROM jobrunner.jobs
UNION ALL
SELECT id, task, args, queue, priority, tags, meta, parent_id, unique_key,
       state, created_at, run_at, started_at, finished_at,
       attempt, max_attempts, crash_count, max_crashes, time_limit,
       last_error_type, last_error, last_error_at,
       result, wait_ms, run_ms, cpu_ms, worker_id, lease, NULL::timestamptz,
       soft_time_limit, cpu_limit, memory_limit, memory_limit_on_retry, output_limit, max_processes,
       progress, progress_text, checkpoint, peak_memory, ordering_key, expires_at
FROM jobrunner.job_history""",
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    for table in ("jobs", "job_history"):
        op.execute(f"ALTER TABLE jobrunner.{table} {COLUMNS}")
    if not op.get_context().as_sql:  # where an index could not be built, this part is there already
        op.execute(AGAIN)
    op.execute(CHECK)
    op.execute(KEPT)
    op.execute(kinds(*KINDS, "consumer"))
    for name, query in VIEWS.items():
        op.execute(f"CREATE OR REPLACE VIEW jobrunner.{name} AS{query}")
    if op.get_context().as_sql:
        for name, definition in INDEXES.items():
            op.execute(f"CREATE {definition.format(f' {name}')}")
        return
    with op.get_context().autocommit_block():
        build()


def build() -> None:
    """Make the indexes; each build waits for transactions that are older, and nobody waits for it."""
    # A role's statement_timeout is not for this. Behind a pooler, where the next statement may run in another session, it stays as it is.
    connection = op.get_bind().connection.driver_connection
    direct = connection.info.backend_pid == op.get_bind().scalar(sa.text("SELECT pg_backend_pid()"))
    if direct:
        op.execute("SET statement_timeout = 0")
    for name, definition in INDEXES.items():
        if is_broken(name):
            op.execute(f"DROP INDEX CONCURRENTLY jobrunner.{name}")
        op.execute(f"CREATE {definition.format(f' CONCURRENTLY IF NOT EXISTS {name}')}")
    if direct:
        op.execute("RESET statement_timeout")


def is_broken(name: str) -> bool:
    """Whether a build of the index was broken off."""
    query = "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT (indisvalid AND indisready))"
    return bool(op.get_bind().scalar(sa.text(query), {"name": f"jobrunner.{name}"}))


def kinds(*words: str) -> str:
    """What sort of worker there may be."""
    allowed = ", ".join(f"'{word}'" for word in words)
    return f"ALTER TABLE jobrunner.workers DROP CONSTRAINT workers_kind, ADD CONSTRAINT workers_kind CHECK (kind IN ({allowed}))"


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    for name in VIEWS:
        op.execute(f"DROP VIEW jobrunner.{name}")
    for name in INDEXES:
        op.execute(f"DROP INDEX jobrunner.{name}")
    for table in ("jobs", "job_history"):
        op.execute(f"ALTER TABLE jobrunner.{table} DROP COLUMN ordering_key, DROP COLUMN expires_at")
    op.execute("UPDATE jobrunner.workers SET kind = 'daemon' WHERE kind = 'consumer'")
    op.execute(kinds(*KINDS))
    for name in VIEWS:
        op.execute(f"CREATE VIEW jobrunner.{name} AS{before(name)}")


def before(view: str) -> str:
    """What an earlier revision said of a view."""
    revisions = op.get_context().script.iterate_revisions(down_revision, "base")
    return next(step.module.VIEWS[view] for step in revisions if view in getattr(step.module, "VIEWS", {}))
