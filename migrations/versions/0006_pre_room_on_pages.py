"""Room on the pages of jobs, so that a claim writes the new version of a row beside the old one.

Revision 0006. Safe before the new code and beside running workers: it changes a setting of the table, no row. Only pages that are filled from
now on are filled by half; a queue that is worked off has none of the others left.

A claim changes what two indexes are made of, so its new version is never a cheap one; but on the same page it is written to the log as the
difference to the old one, and on another page whole, with one more lock record before it: 140 bytes of 1,590 a job. What this costs is
pages: a million waiting jobs take twice as many, which were needed for their second versions anyway.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("ALTER TABLE jobrunner.jobs SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("ALTER TABLE jobrunner.jobs RESET (fillfactor)")
