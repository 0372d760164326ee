"""Usage: what every second of every card went into, and how good forecasts were."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE sessions
    ADD COLUMN beat_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN fits jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN sessions.beat_at IS 'Its last heartbeat; what came after it nobody knows.';
COMMENT ON COLUMN sessions.fits IS 'What images its card can make; read for quotes only.';

CREATE TABLE usage (
    worker text NOT NULL,
    session_id text NOT NULL,
    hour timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    checkpoint text NOT NULL,
    use text NOT NULL,
    user_id integer,
    seconds double precision NOT NULL,
    PRIMARY KEY (session_id, hour, batch_id, checkpoint, use, worker)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE usage IS
    'What the seconds of cards were spent on. Each session writes its own rows, as totals.';
COMMENT ON COLUMN usage.session_id IS
    'Empty where the sessions of a worker and the hours of a day were added up.';
COMMENT ON COLUMN usage.batch_id IS '0 for what no batch had, such as waiting.';
CREATE INDEX usage_hour ON usage USING brin (hour) WITH (autosummarize = on);

CREATE TABLE forecasts (
    batch_id bigint NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    moment text NOT NULL CHECK (moment IN ('accepted', 'half')),
    made_at timestamptz NOT NULL DEFAULT now(),
    model double precision NOT NULL,
    p50 double precision NOT NULL,
    p90 double precision NOT NULL,
    taken double precision,
    PRIMARY KEY (batch_id, moment)
);
COMMENT ON TABLE forecasts IS
    'When batches were to end, and when they did, in seconds from made_at.';
COMMENT ON COLUMN forecasts.model IS 'As the costs of jobs add up, before past errors are heeded.';
CREATE INDEX forecasts_made ON forecasts (made_at DESC) WHERE taken IS NOT NULL;
CREATE INDEX forecasts_open ON forecasts (batch_id) WHERE taken IS NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
