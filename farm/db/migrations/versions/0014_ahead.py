"""What of a batch was claimed ahead of its cursor: its checkpoints need not wait for each other."""

from alembic import op

from farm.db.migrations import online

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE batches ADD COLUMN IF NOT EXISTS ahead int8multirange NOT NULL DEFAULT '{}';
COMMENT ON COLUMN batches.cursor IS
    'The first job that nobody has claimed; in no index, so that it moves in place.';
COMMENT ON COLUMN batches.ahead IS 'Jobs past the cursor that have been claimed; a few ranges.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)
    # A dispatcher of the version before knows only the cursor: what it would claim twice is undone.
    online.check("batches", "batches_ahead", "isempty(ahead) OR lower(ahead) > cursor")


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
