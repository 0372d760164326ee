"""In which file format a batch's images are kept."""

from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE batches ADD COLUMN output jsonb NOT NULL DEFAULT '{"format": "png"}';
COMMENT ON COLUMN batches.output IS
    'How images become files: format, quality, lossless. It decides no pixel: it is in no job.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
