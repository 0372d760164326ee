"""Fair share: weights and caps of users, batches that can be paused, attempts found by time."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE users
    ADD COLUMN weight real NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight <= 1000),
    ADD COLUMN max_in_flight integer CHECK (max_in_flight >= 0),
    ADD COLUMN admin boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN users.weight IS 'Part of the farm, relative to others.';
COMMENT ON COLUMN users.max_in_flight IS 'Most jobs in flight at once; null for any number.';
COMMENT ON COLUMN users.admin IS 'May change what is not theirs.';

ALTER TABLE batches
    DROP CONSTRAINT batches_state_check,
    ADD CONSTRAINT batches_state_check CHECK (state IN ('open', 'paused', 'cancelled', 'done'));

CREATE TABLE leader (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch bigint NOT NULL,
    name text NOT NULL,
    heartbeat timestamptz NOT NULL
);
COMMENT ON TABLE leader IS 'The dispatcher that acts; each new one counts the epoch up.';
COMMENT ON COLUMN leader.name IS 'The application name of its connections.';

-- Attempts are appended in the order of time, so that a summary of pages is index enough.
CREATE INDEX attempts_time ON attempts USING brin (ended_at) WITH (autosummarize = on);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
