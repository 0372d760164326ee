"""Assets of every kind, as each host has them, and orders to workers."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = """
DROP TABLE assets;

CREATE TABLE asset_files (
    host text NOT NULL,
    path text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    family text,
    dtype text,
    bytes bigint NOT NULL,
    defaults jsonb NOT NULL,
    metadata jsonb NOT NULL,
    error text,
    identity text,
    sha256 text,
    weights_sha256 text,
    hashing_until timestamptz,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, path)
);
COMMENT ON TABLE asset_files IS 'Files that workers can load, as each host last saw them.';
COMMENT ON COLUMN asset_files.identity IS
    'Size, mtime and inode; the hashes are those of the file that had them.';
COMMENT ON COLUMN asset_files.weights_sha256 IS 'Of what follows the header of a LoRA.';
COMMENT ON COLUMN asset_files.hashing_until IS 'A worker has taken it on until then.';
CREATE INDEX asset_files_name ON asset_files (kind, name);

CREATE VIEW assets AS
SELECT DISTINCT ON (kind, name)
       kind, name, family, dtype, bytes, defaults, metadata, error, sha256, weights_sha256,
       count(*) OVER named AS hosts,
       min(sha256) OVER named <> max(sha256) OVER named AS differs
FROM asset_files
WINDOW named AS (PARTITION BY kind, name)
ORDER BY kind, name, error IS NOT NULL, seen_at DESC, host, path;
COMMENT ON VIEW assets IS 'One row a name: a usable file of it if any host has one.';

CREATE TABLE orders (
    session_id text NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    subject text NOT NULL,
    action text NOT NULL CHECK (action IN ('warm', 'evict', 'trace')),
    ordered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, subject)
);
COMMENT ON TABLE orders IS 'What a worker is to do, until it hears of it with its next heartbeat.';
COMMENT ON COLUMN orders.subject IS 'A checkpoint to warm or evict, or the id of a trace.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
