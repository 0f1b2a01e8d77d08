"""Names that callers give to jobs, so that other processes find them.

Revision 0008. Safe before the new code: it adds a table that nobody else reads. Jobs without such a name have nothing to do with it.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# No foreign key: a job moves from `jobs` to a partition of `job_history` and is dropped with that. Upkeep takes away what is left behind, in the
# order of `job_id`, which is about that of age.
JOB_REFERENCES = """
CREATE TABLE jobrunner.job_references (
    space      text        NOT NULL,
    key        text        NOT NULL,
    job_id     bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_references_pkey PRIMARY KEY (space, key),
    CONSTRAINT job_references_names CHECK (space <> '' AND key <> '')
)
"""
INDEX = "CREATE INDEX job_references_job ON jobrunner.job_references (job_id)"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute(JOB_REFERENCES)
    op.execute(INDEX)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("DROP TABLE jobrunner.job_references")
