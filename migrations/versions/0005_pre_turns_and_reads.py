"""Whose turn it is at upkeep, and two indexes of history: what did not succeed of a task, and what is in another queue than the default one.

Revision 0005. Safe before the new code: it adds a table that nobody else reads, and indexes, which are built beside whoever finishes jobs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UPKEEP_TURN = """
CREATE TABLE jobrunner.upkeep_turn (
    id        integer     NOT NULL DEFAULT 1,
    worker_id bigint      NOT NULL,
    until     timestamptz NOT NULL,
    CONSTRAINT upkeep_turn_pkey PRIMARY KEY (id),
    CONSTRAINT upkeep_turn_one CHECK (id = 1)
)
"""
# Both are partial, for each index costs every finished job that is in it. Few jobs fail. In a busy default queue a walk by time finds its
# jobs at once; the queues beside it are those that may have had none for weeks.
INDEXES = {
    "job_history_task_unsuccessful": "(task, finished_at DESC, id DESC) INCLUDE (state) WHERE state <> 'succeeded'",
    "job_history_queue": "(queue, finished_at DESC, id DESC) WHERE queue <> 'default'",
}
LARGE = 8_000_000  # bytes of a partition; a smaller one is indexed within milliseconds, and needs not wait for others' snapshots

# The partitions that lack an index, and the tables that are about to take a day's place, with its name for them.
_LACKING = """
SELECT format('jobrunner.%I', c.relname), format('jobrunner.%I', c.relname || right(:name, -11)), c.relname || right(:name, -11),
       c.relispartition, pg_relation_size(c.oid) >= :large,
       EXISTS (SELECT FROM pg_index x WHERE x.indexrelid = to_regclass(format('jobrunner.%I', c.relname || right(:name, -11)))
               AND NOT (x.indisvalid AND x.indisready))
FROM pg_class c
WHERE c.relkind = 'r' AND c.relnamespace = 'jobrunner'::regnamespace
  AND (c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'jobrunner.job_history'::regclass)
       OR c.relname ~ '^job_history_[0-9]{8}_kept$')
  AND NOT EXISTS (SELECT FROM pg_inherits h JOIN pg_index x ON x.indexrelid = h.inhrelid
                  WHERE x.indrelid = c.oid AND h.inhparent = to_regclass('jobrunner.' || :name))
ORDER BY 1
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    if op.get_context().as_sql:
        op.execute("-- These two hold up whoever finishes jobs until they are built. `jobrunner db upgrade` builds them day by day instead, beside that.")
        for name, definition in INDEXES.items():
            op.execute(f"CREATE INDEX {name} ON jobrunner.job_history {definition}")
        op.execute(UPKEEP_TURN)
        return
    # Partitions that are made from now on have them. What was begun and broken off is gone on with, hence IF NOT EXISTS.
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY jobrunner.job_history {definition}")
    with op.get_context().autocommit_block():
        build_large()
    op.execute("SET LOCAL lock_timeout = '2s'")
    for name, definition in INDEXES.items():
        for table, index, bare, is_partition, _, _ in lacking(name):
            op.execute(f'CREATE INDEX IF NOT EXISTS "{bare}" ON {table} {definition}')
            if is_partition:
                op.execute(f"ALTER INDEX jobrunner.{name} ATTACH PARTITION {index}")
    op.execute(UPKEEP_TURN)


def build_large() -> None:
    """Index the large partitions one after the other; each build waits for transactions that are older, and nobody waits for it."""
    # A role's statement_timeout is not for this. Behind a pooler, where the next statement may run in another session, it stays as it is.
    connection = op.get_bind().connection.driver_connection
    direct = connection.info.backend_pid == op.get_bind().scalar(sa.text("SELECT pg_backend_pid()"))
    if direct:
        op.execute("SET statement_timeout = 0")
    for name, definition in INDEXES.items():
        for table, index, bare, _, is_large, is_broken in lacking(name):
            if is_broken:
                op.execute(f"DROP INDEX CONCURRENTLY {index}")
            if is_large:
                op.execute(f'CREATE INDEX CONCURRENTLY IF NOT EXISTS "{bare}" ON {table} {definition}')
    if direct:
        op.execute("RESET statement_timeout")


def lacking(name: str) -> list[tuple[str, str, str, bool, bool, bool]]:
    """Table, index, its bare name, whether it is a partition, large, and whether a build was broken off."""
    return [tuple(row) for row in op.get_bind().execute(sa.text(_LACKING), {"name": name, "large": LARGE})]


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("DROP TABLE jobrunner.upkeep_turn")
    for name in INDEXES:
        op.execute(f"DROP INDEX jobrunner.{name}")
