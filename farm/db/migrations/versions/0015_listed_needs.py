"""Where listed jobs begin that need something else of a worker, so that they are found however far
back they are."""

from alembic import op

from farm.db.migrations import online

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE inputs ADD COLUMN IF NOT EXISTS needs bigint;
COMMENT ON COLUMN inputs.needs IS
    'What it and those after it need of a worker, as a hash; null for as the one before.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)
    # Lists that came before are not marked: of them the heads are looked at, and nothing further.
    online.index("inputs_needs", "inputs (batch_id, needs, ord) WHERE needs IS NOT NULL")


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
