"""What forwards of each shape were measured to take on each kind of card."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE measurements (
    card text NOT NULL,
    torch text NOT NULL,
    work text NOT NULL CHECK (work IN ('denoise', 'decode')),
    family text NOT NULL,
    parameters bigint NOT NULL,
    dtype text NOT NULL,
    mode text NOT NULL,
    pixels bigint NOT NULL,
    rows integer NOT NULL,
    seconds double precision,
    bytes bigint,
    outside bigint,
    failed boolean NOT NULL,
    measured_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (card, torch, work, family, parameters, dtype, mode, pixels, rows)
);
COMMENT ON TABLE measurements IS
    'What calls of models take, by kind of card; workers plan by it. May be emptied at any time.';
COMMENT ON COLUMN measurements.parameters IS 'Of the UNet or VAE.';
COMMENT ON COLUMN measurements.seconds IS 'Of one call, the quickest of late.';
COMMENT ON COLUMN measurements.bytes IS 'Most memory that one took beyond what was held before.';
COMMENT ON COLUMN measurements.outside IS 'Of the card, what was taken past torch.';
COMMENT ON COLUMN measurements.failed IS 'Memory ran out in it.';

ALTER TABLE orders
    DROP CONSTRAINT orders_action_check,
    ADD CONSTRAINT orders_action_check
        CHECK (action IN ('warm', 'evict', 'trace', 'canary', 'calibrate', 'memory'));
COMMENT ON COLUMN orders.subject IS
    'A checkpoint to warm or evict, or the id of what is to be told, and what of.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
