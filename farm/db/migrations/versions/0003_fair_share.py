"""Fair share: weights and caps of users, batches that can be paused, attempts found by time."""

from alembic import op

from farm.db.migrations import online

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE users
    ADD COLUMN IF NOT EXISTS weight real NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight <= 1000),
    ADD COLUMN IF NOT EXISTS max_in_flight integer CHECK (max_in_flight >= 0),
    ADD COLUMN IF NOT EXISTS admin boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN users.weight IS 'Part of the farm, relative to others.';
COMMENT ON COLUMN users.max_in_flight IS 'Most jobs in flight at once; null for any number.';
COMMENT ON COLUMN users.admin IS 'May change what is not theirs.';

CREATE TABLE IF NOT EXISTS leader (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch bigint NOT NULL,
    name text NOT NULL,
    heartbeat timestamptz NOT NULL
);
COMMENT ON TABLE leader IS 'The dispatcher that acts; each new one counts the epoch up.';
COMMENT ON COLUMN leader.name IS 'The application name of its connections.';
"""

STATES = "state IN ('open', 'paused', 'cancelled', 'done')"
# Attempts are appended in the order of time, so that a summary of pages is index enough.
TIME = "attempts USING brin (ended_at) WITH (autosummarize = on)"


def upgrade() -> None:
    op.execute(SCHEMA)
    online.check("batches", "batches_state_check", STATES)
    online.index("attempts_time", TIME)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
