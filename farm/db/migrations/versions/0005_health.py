"""Health of workers: quarantine, canaries, retention."""

from alembic import op

from farm.db.migrations import online

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE IF NOT EXISTS quarantines (
    host text NOT NULL,
    worker text NOT NULL,
    reason text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    by_hand boolean NOT NULL,
    times integer NOT NULL DEFAULT 1,
    tests integer NOT NULL DEFAULT 0,
    test_at timestamptz,
    answers jsonb,
    last_test text,
    PRIMARY KEY (host, worker)
);
COMMENT ON TABLE quarantines IS
    'The last quarantine of each worker that had one; it outlives its sessions.';
COMMENT ON COLUMN quarantines.times IS 'Quarantines in a row, less than a day apart.';
COMMENT ON COLUMN quarantines.test_at IS
    'When it gets its next canaries; null for never: a person resumes it.';
COMMENT ON COLUMN quarantines.answers IS
    'What its last canaries came out as, until they are judged.';

ALTER TABLE orders
    DROP CONSTRAINT orders_action_check,
    ADD CONSTRAINT orders_action_check CHECK (action IN ('warm', 'evict', 'trace', 'canary'));

ALTER TABLE batches
    ADD COLUMN IF NOT EXISTS keep boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS loading_until timestamptz,
    ADD COLUMN IF NOT EXISTS swept_at timestamptz,
    ADD COLUMN IF NOT EXISTS trimmed_at timestamptz,
    SET (autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON COLUMN batches.keep IS 'Never pruned, however old.';
COMMENT ON COLUMN batches.loading_until IS 'Its upload has died if nothing more came by then.';
COMMENT ON COLUMN batches.swept_at IS
    'When files that no image names were removed, once, after its end.';
COMMENT ON COLUMN batches.trimmed_at IS 'When its attempts were forgotten.';

-- What is only inserted into is vacuumed by inserts: at tens of millions of rows, a fifth more
-- would be a long wait for the map that lets index scans skip the table.
ALTER TABLE outcomes SET (autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE images SET (autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE attempts SET (autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE inputs SET (autovacuum_vacuum_insert_scale_factor = 0.05);
"""

TAGS = """
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS tags text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN sessions.tags IS 'What batches may ask for.';
ALTER TABLE batches ADD COLUMN IF NOT EXISTS tags text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN batches.tags IS 'That a worker must have, all of them.';
"""

CHECKS = {
    "sessions": "state IN ('live', 'draining', 'quarantined', 'closed', 'dead')",
    "batches": "state IN ('loading', 'open', 'paused', 'cancelled', 'done', 'pruned')",
}

INDEXES = {
    "sessions_ended": "sessions (ended_at) WHERE ended_at IS NOT NULL",
    # Only failures are in it, so that it costs succeeding jobs nothing.
    "attempts_failed": """attempts (worker, ended_at)
        WHERE result IN ('retry', 'failed', 'lost')""",
    "requeue_due": "requeue (batch_id, not_before, ord)",
    "outcomes_failed": "outcomes (batch_id, ord) WHERE state = 'failed'",
    "batches_hidden": "batches (id) WHERE state IN ('loading', 'pruned')",
    "batches_unswept": "batches (ended_at) WHERE ended_at IS NOT NULL AND swept_at IS NULL",
    "batches_untrimmed": "batches (ended_at) WHERE ended_at IS NOT NULL AND trimmed_at IS NULL",
    "batches_ended": "batches (ended_at) WHERE ended_at IS NOT NULL",
}


def upgrade() -> None:
    op.execute(SCHEMA)
    op.execute(TAGS)
    for table, condition in CHECKS.items():
        online.check(table, f"{table}_state_check", condition)
    for name, definition in INDEXES.items():
        online.index(name, definition)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
