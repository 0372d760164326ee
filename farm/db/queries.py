"""Every statement that moves a job between tables, each named and said in one sentence.

The moves are those of :mod:`farm.spec.moves`. Each is one statement: it deletes here and
inserts there, and the delete is the fence. Time is Postgres's ``now()`` only.
"""

from farm.db import spans, stats

WAKE = "NOTIFY farm_work"
"""Wakes the dispatcher: work came, or something about batches, sessions or users has changed."""

PLACE = "place"
WAKE_FOR_PLACE = f"{WAKE}, '{PLACE}'"
"""Wakes the dispatcher: a place became free, and nothing else has changed."""

# SKIP LOCKED: while an owner's statement has a batch, which may take a while, others are served.
# OFFSET 0: looked up for each of the few jobs, rather than joined with all that ended.
CLAIM = f"""
WITH wanted AS MATERIALIZED (
    SELECT batch_id, session_id, int8range(first, first + count) AS ords
    FROM unnest(%(batch_ids)s::bigint[], %(session_ids)s::text[], %(firsts)s::bigint[],
                %(counts)s::bigint[]) AS w (batch_id, session_id, first, count)
), batch AS MATERIALIZED (
    SELECT id, total, {spans.UNCLAIMED} AS unclaimed FROM batches b
    WHERE id = ANY (%(batch_ids)s) AND state = 'open' FOR NO KEY UPDATE SKIP LOCKED
), rest AS (
    SELECT id, total, unclaimed, coalesce(lower(unclaimed), total) AS cursor
    FROM (SELECT b.id, b.total, b.unclaimed - range_agg(w.ords) AS unclaimed
          FROM batch b JOIN wanted w ON w.batch_id = b.id GROUP BY b.id, b.total, b.unclaimed) r
), moved AS (
    UPDATE batches b
    SET cursor = r.cursor,
        ahead = int8multirange(int8range(r.cursor, r.total)) - r.unclaimed
    FROM rest r WHERE b.id = r.id
)
INSERT INTO leases (batch_id, ord, attempt, session_id)
SELECT b.id, g.ord, 1, w.session_id
FROM batch b JOIN wanted w ON w.batch_id = b.id
CROSS JOIN LATERAL unnest(b.unclaimed * int8multirange(w.ords)) AS s (ords)
CROSS JOIN LATERAL generate_series(lower(s.ords), upper(s.ords) - 1) AS g (ord)
WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.batch_id = b.id AND o.ord = g.ord OFFSET 0)
RETURNING batch_id, ord, attempt, session_id
"""
"""CLAIM of the jobs that are asked of each batch those that nobody has claimed, for one session and
the other; its cursor goes to the first that is left, what is claimed beyond it is noted as ahead.
No job may be asked for twice."""

SET_ASIDE = f"""
WITH batch AS MATERIALIZED (
    SELECT id, total, {spans.UNCLAIMED} AS unclaimed FROM batches b
    WHERE id = %(batch_id)s AND state = 'open' FOR NO KEY UPDATE SKIP LOCKED
), shortest AS (
    SELECT s.ords, sum(upper(s.ords) - lower(s.ords))
                   OVER (ORDER BY upper(s.ords) - lower(s.ords), s.ords) AS jobs
    FROM batch b CROSS JOIN LATERAL unnest(b.unclaimed) AS s (ords)
    ORDER BY jobs LIMIT %(spans)s
), gone AS MATERIALIZED (
    SELECT range_agg(ords) AS ords FROM shortest WHERE jobs <= %(jobs)s
), rest AS (
    SELECT id, total, unclaimed, coalesce(lower(unclaimed), total) AS cursor
    FROM (SELECT b.id, b.total, b.unclaimed - g.ords AS unclaimed
          FROM batch b CROSS JOIN gone g WHERE g.ords IS NOT NULL) r
), moved AS (
    UPDATE batches b
    SET cursor = r.cursor,
        ahead = int8multirange(int8range(r.cursor, r.total)) - r.unclaimed
    FROM rest r WHERE b.id = r.id
)
INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason)
SELECT b.id, g.ord, 0, 0, 0, now(), 'set aside'
FROM batch b CROSS JOIN gone
CROSS JOIN LATERAL unnest(gone.ords) AS s (ords)
CROSS JOIN LATERAL generate_series(lower(s.ords), upper(s.ords) - 1) AS g (ord)
WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.batch_id = b.id AND o.ord = g.ord OFFSET 0)
"""
"""SET ASIDE jobs of a batch that nobody has claimed, those of its shortest spans, so that it has
fewer: each of them waits by itself from now on."""

RECLAIM = """
WITH picked AS (
    DELETE FROM requeue
    USING batches b
    WHERE requeue.batch_id = %(batch_id)s AND requeue.ord = ANY(%(ords)s)
      AND requeue.not_before <= now() AND b.id = requeue.batch_id AND b.state = 'open'
    RETURNING requeue.*
)
INSERT INTO leases (batch_id, ord, attempt, session_id, failures, crashes)
SELECT batch_id, ord, attempt + 1, %(session_id)s, failures, crashes FROM picked
RETURNING batch_id, ord, attempt, session_id
"""
"""CLAIM from the requeue: the next attempt of jobs that wait to be retried."""

START = """
UPDATE leases l SET started_at = now()
FROM jsonb_to_recordset(%(starts)s) AS s (
         batch_id bigint, ord bigint, attempt integer, again boolean), batches b
WHERE l.batch_id = s.batch_id AND l.ord = s.ord AND l.attempt = s.attempt
  AND l.session_id = %(session_id)s AND b.id = s.batch_id
  AND (l.started_at IS NULL OR s.again)
RETURNING l.batch_id, l.ord, l.attempt, l.failures, l.crashes,
          l.cancel_requested OR b.state = 'cancelled' AS cancel_requested,
          extract(epoch FROM now() - l.assigned_at)::float AS assigned_seconds,
          extract(epoch FROM now() - b.created_at)::float AS queue_seconds, b.priority
"""
"""START a group of attempts: those not returned had a stale or repeated message. A CANCEL that met
the CLAIM has not seen its leases, so that the batch is asked, too."""

END = f"""
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
    INSERT INTO attempts (batch_id, ord, attempt, session_id, worker, result, error, assigned_at,
                          started_at, stats, {stats.NAMES})
    SELECT batch_id, ord, attempt, session_id, %(worker)s, coalesce(state, move), error,
           assigned_at, started_at, {stats.rest("stats")}, s.*
    FROM judged CROSS JOIN LATERAL {stats.columns("coalesce(stats, '{}')")}
), imaged AS (
    INSERT INTO images (batch_id, ord, attempt, path, thumb_path, mime, sha256, width, height,
                        bytes, infotext)
    SELECT j.batch_id, j.ord, j.attempt, i.path, i.thumb_path, i.mime, decode(i.sha256, 'hex'),
           i.width, i.height, i.bytes, i.infotext
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
"""SUCCEED, FAIL, RETRY, RELEASE or STOP a group of attempts: the ones not returned were fenced."""

# SKIP LOCKED: a lease that is being started or ended is looked at again a second later. Who waits
# for several leases while he holds others is the worker that has them, and nobody else.
_TAKE_BACK = """
WITH found AS MATERIALIZED (
    SELECT l.batch_id, l.ord FROM leases l JOIN sessions s ON s.id = l.session_id
    WHERE {which} FOR UPDATE OF l SKIP LOCKED
), gone AS (
    DELETE FROM leases l USING found f, sessions s
    WHERE l.batch_id = f.batch_id AND l.ord = f.ord AND s.id = l.session_id
    RETURNING l.*, s.worker, %(error)s::jsonb || coalesce(s.stats -> 'died_of', '{{}}') AS told,
              s.stats -> 'died_of' ->> 'detail' AS died_of
), judged AS (
    SELECT g.*, g.crashes + (g.started_at IS NOT NULL AND %(crashed)s)::int AS deaths,
           b.state = 'cancelled' AS unwanted
    FROM gone g JOIN batches b ON b.id = g.batch_id
), tried AS (
    INSERT INTO attempts (batch_id, ord, attempt, session_id, worker, result, error,
                          assigned_at, started_at)
    SELECT batch_id, ord, attempt, session_id, worker, 'lost', told, assigned_at, started_at
    FROM judged WHERE started_at IS NOT NULL
), retried AS (
    INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason, avoid)
    SELECT batch_id, ord, attempt, failures, deaths, now(),
           coalesce(died_of, 'its worker went away'), CASE WHEN died_of IS NOT NULL THEN worker END
    FROM judged WHERE NOT unwanted AND deaths < %(fatal)s
), recorded AS (
    INSERT INTO outcomes (batch_id, ord, attempt, state, error)
    SELECT batch_id, ord, attempt, CASE WHEN unwanted THEN 'cancelled' ELSE 'failed' END,
           CASE WHEN NOT unwanted THEN told END
    FROM judged WHERE unwanted OR deaths >= %(fatal)s
), counted AS (
    INSERT INTO batch_progress AS p (batch_id, session_id, failed, cancelled)
    SELECT batch_id, 'dispatcher', count(*) FILTER (WHERE NOT unwanted),
           count(*) FILTER (WHERE unwanted)
    FROM judged WHERE unwanted OR deaths >= %(fatal)s GROUP BY batch_id ORDER BY batch_id
    ON CONFLICT (batch_id, session_id) DO UPDATE
    SET failed = p.failed + excluded.failed, cancelled = p.cancelled + excluded.cancelled
)
SELECT batch_id, ord, attempt, started_at IS NOT NULL AS started FROM judged
"""

REAP = _TAKE_BACK.format(which="s.id = ANY (%(session_ids)s) AND s.ended_at IS NOT NULL")
"""REAP or BURY what ended sessions left in flight; only jobs that had started count a crash."""

REAP_UNSTARTED = _TAKE_BACK.format(which="s.id = ANY (%(session_ids)s) AND l.started_at IS NULL")
"""REAP what draining sessions will not start."""

REAP_FORGOTTEN = _TAKE_BACK.format(
    which="""s.ended_at IS NULL AND l.started_at < s.beat_at - make_interval(
                 secs => (s.stats ->> 'oldest_seconds')::float + %(slack)s)"""
)
"""REAP or BURY what live sessions started before the oldest of the attempts that they tell of."""

ENDED_BEFORE = """
SELECT e.batch_id, e.ord, e.attempt,
       CASE WHEN t.result IN ('retry', 'release') THEN 'waiting' ELSE t.result END AS state
FROM jsonb_to_recordset(%(endings)s) AS e (batch_id bigint, ord bigint, attempt integer)
JOIN attempts t USING (batch_id, ord, attempt)
WHERE t.session_id = %(session_id)s AND t.result <> 'lost'
"""
"""What an END achieved whose answer was lost with its connection."""

HOLD = "SELECT FROM batches WHERE id = %(batch_id)s FOR NO KEY UPDATE"
"""Wait for the CLAIM of a batch that is under way: a statement that began before it cannot see its
leases."""

CANCEL = """
UPDATE batches SET state = 'cancelled'
WHERE id = %(batch_id)s AND state IN ('open', 'paused')
  AND (cursor < total OR EXISTS (SELECT FROM leases WHERE batch_id = %(batch_id)s)
       OR EXISTS (SELECT FROM requeue WHERE batch_id = %(batch_id)s))
RETURNING id
"""
"""CANCEL a batch, which must be held, if something is left of it: one row."""

# SKIP LOCKED: what is being ended needs no flag, and what is being started gets it a second later.
FLAG = """
UPDATE leases l SET cancel_requested = true
FROM (SELECT f.batch_id, f.ord
      FROM leases f JOIN batches b ON b.id = f.batch_id AND b.state = 'cancelled'
      WHERE (%(batch_id)s::bigint IS NULL OR f.batch_id = %(batch_id)s) AND NOT f.cancel_requested
      FOR UPDATE OF f SKIP LOCKED) found
WHERE l.batch_id = found.batch_id AND l.ord = found.ord
"""
"""CANCEL what is in flight of a cancelled batch, or of all: its workers hear of it."""

STOP_WAITING = """
WITH unwanted AS MATERIALIZED (
    SELECT id FROM batches WHERE ended_at IS NULL AND state = 'cancelled'
), gone AS (
    DELETE FROM requeue WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM unwanted u
        CROSS JOIN LATERAL (SELECT ctid FROM requeue WHERE batch_id = u.id LIMIT %(limit)s) r
        LIMIT %(limit)s))
    RETURNING *
), recorded AS (
    INSERT INTO outcomes (batch_id, ord, attempt, state)
    SELECT batch_id, ord, attempt, 'cancelled' FROM gone
)
INSERT INTO batch_progress AS p (batch_id, session_id, cancelled)
SELECT batch_id, 'dispatcher', count(*) FROM gone GROUP BY batch_id
ON CONFLICT (batch_id, session_id) DO UPDATE SET cancelled = p.cancelled + excluded.cancelled
"""
"""CANCEL some jobs of cancelled batches that wait to be retried."""

# OFFSET 0: looked up for each of the few batches that may be at their end, rather than joined with
# all that waits.
_FINISHABLE = """
SELECT id FROM batches b
WHERE b.ended_at IS NULL
  AND (b.state = 'cancelled' OR (b.state IN ('open', 'paused') AND b.cursor = b.total{which}))
  AND NOT EXISTS (SELECT FROM leases l WHERE l.batch_id = b.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM requeue r WHERE r.batch_id = b.id OFFSET 0)
FOR NO KEY UPDATE SKIP LOCKED
"""

FINISHABLE = _FINISHABLE.format(which=" AND b.id = ANY (%(among)s)")
"""Lock those of some batches, and of the cancelled ones, of which nothing seems to be left, so that
nobody repeats a job meanwhile."""

FINISHABLE_OF_ALL = _FINISHABLE.format(which="")
"""The same of all that are open, however many."""

FINISH = """
UPDATE batches b SET state = CASE WHEN b.state = 'cancelled' THEN b.state ELSE 'done' END,
                     ended_at = now()
WHERE b.id = ANY(%(ids)s)
  AND NOT EXISTS (SELECT FROM leases l WHERE l.batch_id = b.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM requeue r WHERE r.batch_id = b.id OFFSET 0)
RETURNING b.id
"""
"""Close those of the locked batches of which nothing is pending, in flight or waiting."""

REPEAT = """
WITH batch AS MATERIALIZED (
    SELECT id FROM batches
    WHERE id = %(batch_id)s AND state IN ('open', 'paused', 'done') FOR NO KEY UPDATE
), gone AS (
    DELETE FROM outcomes o USING batch
    WHERE o.batch_id = batch.id AND o.state = 'failed'
      AND (%(ord)s::bigint IS NULL OR o.ord = %(ord)s)
    RETURNING o.batch_id, o.ord, o.attempt
), waiting AS (
    INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason)
    SELECT batch_id, ord, attempt, 0, 0, now(), 'its owner wants it tried again' FROM gone
), counted AS (
    INSERT INTO batch_progress AS p (batch_id, session_id, failed)
    SELECT batch_id, 'repeat', -count(*) FROM gone GROUP BY batch_id
    ON CONFLICT (batch_id, session_id) DO UPDATE SET failed = p.failed + excluded.failed
), reopened AS (
    UPDATE batches SET state = CASE WHEN state = 'done' THEN 'open' ELSE state END,
                       ended_at = NULL, swept_at = NULL, trimmed_at = NULL
    WHERE id IN (SELECT batch_id FROM gone)
)
SELECT count(*) AS repeated FROM gone
"""
"""REPEAT the failed jobs of a batch, or one of them, with new budgets; the batch is open again."""
