"""The queue of record: where a job is, is which table it is in."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE users (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE users IS 'Who submits; the single user of a local farm is named local.';

CREATE TABLE api_keys (
    sha256 bytea PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE api_keys IS 'Hashes of issued keys; a key itself is shown once and never stored.';

CREATE TABLE assets (
    kind text NOT NULL,
    name text NOT NULL,
    family text,
    bytes bigint NOT NULL,
    path text NOT NULL,
    defaults jsonb NOT NULL,
    error text,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (kind, name)
);
COMMENT ON TABLE assets IS 'Files that workers can load, as the last worker to start saw them.';

CREATE TABLE batches (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users (id),
    name text NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'cancelled', 'done')),
    priority smallint NOT NULL,
    total bigint NOT NULL CHECK (total > 0),
    cursor bigint NOT NULL DEFAULT 0 CHECK (cursor BETWEEN 0 AND total),
    spec jsonb,
    idempotency_key text,
    request_hash bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
) WITH (fillfactor = 50);
COMMENT ON COLUMN batches.cursor IS
    'Jobs before it have been claimed; in no index, so that it moves in place.';
COMMENT ON COLUMN batches.spec IS
    'Template, axes and count; null when the jobs are listed in inputs.';
CREATE INDEX batches_open ON batches (priority DESC, id) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX batches_idempotency ON batches (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE inputs (
    batch_id bigint NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    ord bigint NOT NULL,
    spec jsonb NOT NULL,
    PRIMARY KEY (batch_id, ord)
);
COMMENT ON TABLE inputs IS 'Jobs listed one by one; append only.';

CREATE TABLE sessions (
    id text PRIMARY KEY,
    worker text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    device jsonb NOT NULL,
    profile text NOT NULL,
    capacity integer NOT NULL CHECK (capacity > 0),
    state text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'draining', 'closed', 'dead')),
    resident text[] NOT NULL DEFAULT '{}',
    stats jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL,
    ended_at timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE sessions IS 'One life of a worker; its heartbeat moves lease_until.';
CREATE INDEX sessions_alive ON sessions (id) WHERE ended_at IS NULL;

CREATE TABLE leases (
    batch_id bigint NOT NULL,
    ord bigint NOT NULL,
    attempt integer NOT NULL,
    session_id text NOT NULL REFERENCES sessions (id),
    failures integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz NOT NULL DEFAULT now(),
    publishes integer NOT NULL DEFAULT 1,
    started_at timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    PRIMARY KEY (batch_id, ord)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE leases IS 'What is in flight: a session''s right to one attempt.';
CREATE INDEX leases_session ON leases (session_id);

CREATE TABLE requeue (
    batch_id bigint NOT NULL,
    ord bigint NOT NULL,
    attempt integer NOT NULL,
    failures integer NOT NULL,
    crashes integer NOT NULL,
    not_before timestamptz NOT NULL,
    reason text NOT NULL,
    avoid text,
    PRIMARY KEY (batch_id, ord)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
COMMENT ON COLUMN requeue.avoid IS 'The worker that failed the job; another takes it if one can.';

CREATE TABLE outcomes (
    batch_id bigint NOT NULL,
    ord bigint NOT NULL,
    attempt integer NOT NULL,
    state text NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled')),
    error jsonb,
    ended_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch_id, ord)
);
COMMENT ON TABLE outcomes IS 'What ended; the primary key makes a second outcome impossible.';

CREATE TABLE images (
    batch_id bigint NOT NULL,
    ord bigint NOT NULL,
    attempt integer NOT NULL,
    path text NOT NULL,
    thumb_path text NOT NULL,
    mime text NOT NULL,
    sha256 text NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    bytes bigint NOT NULL,
    infotext text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch_id, ord)
);

CREATE TABLE attempts (
    batch_id bigint NOT NULL,
    ord bigint NOT NULL,
    attempt integer NOT NULL,
    session_id text NOT NULL,
    worker text NOT NULL,
    result text NOT NULL,
    error jsonb,
    stats jsonb NOT NULL DEFAULT '{}',
    assigned_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch_id, ord, attempt)
);
COMMENT ON TABLE attempts IS 'Every try that ended, with its timings and memory; append only.';

CREATE TABLE batch_progress (
    batch_id bigint NOT NULL,
    session_id text NOT NULL,
    succeeded bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, session_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE batch_progress IS 'Counts by session, so that no row is written by all workers.';

CREATE VIEW jobs AS
SELECT b.id AS batch_id,
       g.ord,
       CASE
           WHEN o.state IS NOT NULL THEN o.state
           WHEN l.started_at IS NOT NULL THEN 'running'
           WHEN l.batch_id IS NOT NULL THEN 'assigned'
           WHEN b.state = 'cancelled' THEN 'cancelled'
           WHEN r.batch_id IS NOT NULL THEN 'waiting'
           ELSE 'pending'
       END AS state,
       coalesce(o.attempt, l.attempt, r.attempt, 0) AS attempt
FROM batches b
CROSS JOIN LATERAL generate_series(0, b.total - 1) AS g (ord)
LEFT JOIN outcomes o ON o.batch_id = b.id AND o.ord = g.ord
LEFT JOIN leases l ON l.batch_id = b.id AND l.ord = g.ord
LEFT JOIN requeue r ON r.batch_id = b.id AND r.ord = g.ord;
COMMENT ON VIEW jobs IS 'Every job with its state, for people and reports.';
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise RuntimeError("The first revision cannot be undone; drop the database instead.")
