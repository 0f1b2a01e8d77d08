"""Whose turn it is to take the rare steps that keep the tables in shape: one row, so that one worker at a time is at it.

Revision 0005. Safe before the new code: it adds a table that nobody else reads.
"""

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


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute(UPKEEP_TURN)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("DROP TABLE jobrunner.upkeep_turn")
