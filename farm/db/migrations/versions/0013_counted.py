"""What of a user waits at most, so that a submission need not count it."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE users
    ADD COLUMN IF NOT EXISTS waiting_most bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS counted_at timestamptz;
COMMENT ON COLUMN users.waiting_most IS
    'Jobs that waited when they were last counted, and all that came since.';
COMMENT ON COLUMN users.counted_at IS 'When they were counted; null for never.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
