"""Quotas of users, the mark of the image store, and indexes for them and for old usage."""

from alembic import op

from farm.db.migrations import online

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE users ADD COLUMN IF NOT EXISTS max_waiting bigint CHECK (max_waiting >= 0);
COMMENT ON COLUMN users.max_waiting IS
    'Most jobs that may wait to be begun; null for what the farm allows everybody.';

CREATE TABLE IF NOT EXISTS image_store (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    id text NOT NULL
);
COMMENT ON TABLE image_store IS
    'What is written in the root of the store: a folder without it is not mounted.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)
    online.index("batches_of_user", "batches (user_id) WHERE ended_at IS NULL")
    online.index("usage_by_session", "usage (hour) WHERE session_id <> ''")
    online.index("usage_by_worker", "usage (hour) WHERE session_id = '' AND worker <> ''")


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
