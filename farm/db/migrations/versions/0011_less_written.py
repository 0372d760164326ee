"""Less is written for a job: statistics in columns, no index of leases by session."""

from alembic import op

from farm.db.migrations import online

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = """
DROP INDEX leases_session;
CREATE INDEX leases_unwanted ON leases (session_id) WHERE cancel_requested;

ALTER TABLE images ALTER COLUMN sha256 TYPE bytea USING decode(sha256, 'hex');

ALTER TABLE attempts
    ALTER COLUMN stats DROP NOT NULL,
    ALTER COLUMN stats DROP DEFAULT,
    ADD COLUMN vram_active bigint,
    ADD COLUMN vram_reserved bigint,
    ADD COLUMN system_used bigint,
    ADD COLUMN system_total bigint,
    ADD COLUMN units real,
    ADD COLUMN gpu_seconds real,
    ADD COLUMN queue_seconds real,
    ADD COLUMN load_seconds real,
    ADD COLUMN encode_seconds real,
    ADD COLUMN denoise_seconds real,
    ADD COLUMN decode_seconds real,
    ADD COLUMN store_seconds real,
    ADD COLUMN mean_rows real,
    ADD COLUMN steps integer,
    ADD COLUMN forwards integer,
    ADD COLUMN checkpoint text,
    ADD COLUMN precision text,
    ADD COLUMN remark text,
    ADD COLUMN buckets smallint[];
COMMENT ON COLUMN attempts.stats IS 'What has no column of its own; null for nothing.';
COMMENT ON COLUMN attempts.units IS 'The size of the job, which its GPU-seconds are compared with.';
"""

MOVE = """
UPDATE attempts SET
    vram_active = (stats ->> 'vram_active')::bigint,
    vram_reserved = (stats ->> 'vram_reserved')::bigint,
    system_used = (stats ->> 'system_used')::bigint,
    system_total = (stats ->> 'system_total')::bigint,
    units = (stats ->> 'units')::real,
    gpu_seconds = (stats ->> 'gpu_seconds')::real,
    queue_seconds = (stats ->> 'queue_seconds')::real,
    load_seconds = (stats ->> 'load_seconds')::real,
    encode_seconds = (stats ->> 'encode_seconds')::real,
    denoise_seconds = (stats ->> 'denoise_seconds')::real,
    decode_seconds = (stats ->> 'decode_seconds')::real,
    store_seconds = (stats ->> 'store_seconds')::real,
    mean_rows = (stats ->> 'mean_rows')::real,
    steps = (stats ->> 'steps')::integer,
    forwards = (stats ->> 'forwards')::integer,
    checkpoint = stats ->> 'checkpoint',
    precision = stats ->> 'precision',
    remark = stats ->> 'remark',
    buckets = CASE WHEN jsonb_typeof(stats -> 'buckets') = 'array'
                   THEN ARRAY(SELECT jsonb_array_elements_text(stats -> 'buckets')::smallint) END,
    stats = nullif(jsonb_strip_nulls(stats) - ARRAY[
        'vram_active', 'vram_reserved', 'system_used', 'system_total', 'units', 'gpu_seconds',
        'queue_seconds', 'load_seconds', 'encode_seconds', 'denoise_seconds', 'decode_seconds',
        'store_seconds', 'mean_rows', 'steps', 'forwards', 'checkpoint', 'precision', 'remark',
        'buckets', 'iterations_per_second'], '{}')
"""


def upgrade() -> None:
    # Images are written anew, and what workers of the version before tell of one is not understood.
    online.wait_for_workers_to_stop()
    op.execute(SCHEMA)
    op.execute(MOVE)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
