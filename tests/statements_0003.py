"""Statements of the version with schema 0003, as its processes go on with them in an upgrade."""

CLAIM = """
WITH batch AS MATERIALIZED (
    SELECT id, cursor, least(total, cursor + %(count)s) AS reached
    FROM batches WHERE id = %(batch_id)s AND state = 'open' FOR UPDATE
), moved AS (
    UPDATE batches SET cursor = batch.reached FROM batch WHERE batches.id = batch.id
    RETURNING batches.id, batch.cursor AS lo, batch.reached AS hi
)
INSERT INTO leases (batch_id, ord, attempt, session_id)
SELECT moved.id, g.ord, 1, %(session_id)s
FROM moved CROSS JOIN LATERAL generate_series(moved.lo, moved.hi - 1) AS g (ord)
WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.batch_id = moved.id AND o.ord = g.ord)
RETURNING batch_id, ord, attempt, session_id
"""

START = """
UPDATE leases SET started_at = now()
FROM batches b
WHERE leases.batch_id = %(batch_id)s AND leases.ord = %(ord)s AND leases.attempt = %(attempt)s
  AND leases.session_id = %(session_id)s AND b.id = leases.batch_id
  AND (leases.started_at IS NULL OR %(again)s)
RETURNING leases.failures, leases.crashes, leases.cancel_requested,
          extract(epoch FROM now() - leases.assigned_at)::float AS assigned_seconds,
          extract(epoch FROM now() - b.created_at)::float AS queue_seconds, b.priority
"""

END = """
WITH ending AS (
    SELECT * FROM jsonb_to_recordset(%(endings)s) AS e (
        batch_id bigint, ord bigint, attempt integer, move text, error jsonb, stats jsonb,
        failures integer, delay float, image jsonb)
), ended AS (
    DELETE FROM leases l USING ending e
    WHERE l.batch_id = e.batch_id AND l.ord = e.ord AND l.attempt = e.attempt
      AND l.session_id = %(session_id)s
    RETURNING l.*
), judged AS (
    SELECT d.*, e.error, e.stats, e.failures AS failed_before, e.delay, e.image,
           CASE WHEN e.move = 'succeed' THEN 'succeeded'
                WHEN e.move = 'fail' THEN 'failed'
                WHEN e.move = 'stop' OR b.state = 'cancelled' THEN 'cancelled'
           END AS state, e.move
    FROM ended d JOIN ending e USING (batch_id, ord, attempt) JOIN batches b ON b.id = d.batch_id
), tried AS (
    INSERT INTO attempts (batch_id, ord, attempt, session_id, worker, result, error, stats,
                          assigned_at, started_at)
    SELECT batch_id, ord, attempt, session_id, %(worker)s, coalesce(state, move), error,
           coalesce(stats, '{}'), assigned_at, started_at
    FROM judged
), imaged AS (
    INSERT INTO images (batch_id, ord, attempt, path, thumb_path, mime, sha256, width, height,
                        bytes, infotext)
    SELECT j.batch_id, j.ord, j.attempt, i.path, i.thumb_path, i.mime, i.sha256, i.width, i.height,
           i.bytes, i.infotext
    FROM judged j CROSS JOIN LATERAL jsonb_to_record(j.image) AS i (
        path text, thumb_path text, mime text, sha256 text, width integer, height integer,
        bytes bigint, infotext text)
    WHERE j.state = 'succeeded'
), recorded AS (
    INSERT INTO outcomes (batch_id, ord, attempt, state, error)
    SELECT batch_id, ord, attempt, state, error FROM judged WHERE state IS NOT NULL
), retried AS (
    INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason, avoid)
    SELECT batch_id, ord, attempt, failed_before, crashes,
           now() + make_interval(secs => coalesce(delay, 0)),
           coalesce(error ->> 'detail', 'released by a draining worker'),
           CASE WHEN move = 'retry' THEN %(worker)s END
    FROM judged WHERE state IS NULL
), counted AS (
    INSERT INTO batch_progress AS p (batch_id, session_id, succeeded, failed, cancelled)
    SELECT batch_id, %(session_id)s, count(*) FILTER (WHERE state = 'succeeded'),
           count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state = 'cancelled')
    FROM judged WHERE state IS NOT NULL GROUP BY batch_id ORDER BY batch_id
    ON CONFLICT (batch_id, session_id) DO UPDATE
    SET succeeded = p.succeeded + excluded.succeeded, failed = p.failed + excluded.failed,
        cancelled = p.cancelled + excluded.cancelled
)
SELECT batch_id, ord, attempt, coalesce(state, 'waiting') AS state FROM judged
"""

SUBMIT = """
INSERT INTO batches (user_id, name, priority, total, spec) VALUES (1, '', 50, %(total)s, '{}')
RETURNING id
"""

OPEN = """
INSERT INTO sessions (id, worker, host, pid, device, profile, capacity, lease_until)
VALUES ('old', 'gpu0', 'here', 1, '{}', 'cpu', 8, now() + interval '1 hour')
"""

BEAT = """
UPDATE sessions SET lease_until = now() + interval '1 hour', resident = '{demo}', stats = '{}'
WHERE id = 'old' AND ended_at IS NULL RETURNING state
"""
