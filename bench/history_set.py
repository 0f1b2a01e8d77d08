"""Owns the set of data that reads are measured on: some weeks of finished jobs, as a busy shop would have left them.

It must not measure. What makes a day is put into its partition by the server itself, before that has indexes; the roll-ups hold what
triggers and maintenance would have left. The same number of rows gives the same jobs, apart from the time that it is today.
"""

from __future__ import annotations

import sys
import time

import psycopg

from jobrunner.histograms import BUCKETS

DAYS = 28  # whole days of history before today, evenly filled; the minutes of the last three have roll-ups by the minute
TASKS = 20  # with skew: the first has more than a third of all jobs, the last one in sixty
RARE_TASK, RARE_EVERY = "shop.yearly", 200_003  # one job in so many
OLD_QUEUE, OLD_DAYS = "legacy", 3  # a queue that nobody has used since the first days
WAITING, RUNNING = 5_000, 40  # live jobs
ALIVE, STOPPED = 8, 300  # workers

_SEED = "hashint8(g * 7919)::bigint & 2147483647"  # one number per job, below 2³¹: the same in every run

# Each column of chance takes other digits of the seed.
_JOBS = f"""
SELECT g AS id, at, seed,
       CASE WHEN g %% {RARE_EVERY} = 0 THEN '{RARE_TASK}'
            ELSE 'shop.task_' || floor({TASKS} * power(seed / 2147483648.0, 3)) END AS task,
       CASE WHEN %(ago)s > {DAYS - OLD_DAYS} AND seed / 7 %% 20 = 0 THEN '{OLD_QUEUE}'
            WHEN seed / 11 %% 1000 = 0 THEN 'imports' WHEN seed / 11 %% 10 < 7 THEN 'default'
            WHEN seed / 11 %% 10 < 9 THEN 'mail' ELSE 'reports' END AS queue,
       CASE WHEN seed / 13 %% 1000 < 14 THEN 'failed' WHEN seed / 13 %% 1000 < 18 THEN 'cancelled'
            WHEN seed / 13 %% 1000 < 20 THEN 'quarantined' ELSE 'succeeded' END AS state
FROM (SELECT g, {_SEED} AS seed,
             least(now(), ((now() AT TIME ZONE 'UTC')::date - %(ago)s) AT TIME ZONE 'UTC')
             + (g - %(first)s) * (least(now(), ((now() AT TIME ZONE 'UTC')::date - %(ago)s + 1) AT TIME ZONE 'UTC')
                                  - ((now() AT TIME ZONE 'UTC')::date - %(ago)s) AT TIME ZONE 'UTC') / %(count)s AS at
      FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1) AS g) AS t
"""  # noqa: S608  constants

_HISTORY = f"""
INSERT INTO jobrunner.{{part}} (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, last_error_type, last_error, last_error_at, worker_id, started_at,
    finished_at, result, wait_ms, run_ms, cpu_ms, peak_memory)
SELECT id, task, jsonb_build_object('order_id', id, 'tenant', seed %% 1000, 'template', 'receipt', 'note', repeat('n', (seed %% 60)::int)),
       queue, 0, CASE WHEN seed %% 50 = 0 THEN ARRAY['vip'] ELSE '{{{{}}}}'::text[] END, at - interval '1 s', at - interval '1 s', state,
       CASE WHEN state IN ('failed', 'quarantined') THEN 3 ELSE 1 END, CASE WHEN state = 'failed' THEN 3 ELSE 1 END, 3, 'exponential',
       '5 s', '1 h', 1, CASE WHEN state = 'quarantined' THEN 3 ELSE 0 END, 3,
       CASE WHEN state = 'failed' THEN 'SMTPError' END, CASE WHEN state = 'failed' THEN 'mailbox ' || seed %% 900 || ' is full' END,
       CASE WHEN state = 'failed' THEN at END, 1 + seed %% {ALIVE}, at - interval '20 ms', at,
       CASE WHEN state = 'succeeded' THEN '{{{{"ok": true}}}}'::jsonb END, seed %% 400, seed %% 90, seed %% 60, 30000000
FROM ({_JOBS}) AS j
"""  # noqa: S608  constants

_ATTEMPTS = """
INSERT INTO jobrunner.{part} (job_id, attempt, lease, worker_id, task, queue, started_at, finished_at, outcome, error_type, message,
    traceback, fingerprint, exit_cause, run_ms, cpu_ms)
SELECT h.id, CASE WHEN h.state = 'failed' THEN n ELSE 1 END, n, h.worker_id, h.task, h.queue, h.finished_at - (3 - n) * interval '20 ms',
       greatest(h.finished_at - (3 - n) * interval '10 ms', date_trunc('day', h.finished_at, 'UTC')),
       CASE WHEN h.state = 'cancelled' THEN 'cancelled' WHEN n < 3 AND h.state = 'failed'
       THEN 'retried' WHEN h.state = 'failed' THEN 'failed' WHEN n < 3 THEN 'crashed' ELSE 'quarantined' END,
       CASE WHEN h.state = 'failed' THEN 'SMTPError' END, CASE WHEN h.state = 'failed' THEN h.last_error END,
       CASE WHEN h.state = 'failed' THEN repeat('  File "/srv/shop/mail.py", line 42, in send' || E'\\n', 30) END,
       CASE WHEN h.state = 'failed' THEN md5((h.id %% 60)::text) END,
       CASE WHEN h.state = 'failed' THEN 'exception' ELSE 'signal 9' END, 12, 9
FROM jobrunner.{history} h CROSS JOIN generate_series(1, 3) AS n
WHERE h.state <> 'succeeded' AND (h.state <> 'cancelled' OR n = 3)
"""

_COUNTS = ", ".join(
    f"count(*) FILTER (WHERE jobrunner.histogram_bucket({name}_ms) = {bucket})"
    for bucket in reversed(range(BUCKETS))
    for name in ("run", "wait")
)
_NUMBERS = ", ".join(f"{name}_{bucket}" for bucket in reversed(range(BUCKETS)) for name in ("run", "wait"))
_ROLLUPS = """
INSERT INTO jobrunner.rollup_{period} ({period}, queue, task, outcome, {numbers}, ended_count, run_ms, wait_ms, cpu_ms)
SELECT date_bin('1 {period}', finished_at, 'epoch'), queue, task, state, {counts}, count(*), sum(run_ms), sum(wait_ms), sum(cpu_ms)
FROM jobrunner.{history} GROUP BY 1, 2, 3, 4
"""

_LIVE = f"""
INSERT INTO jobrunner.jobs (id, task, args, queue, run_at)
SELECT 1000000000 + g, 'shop.task_' || g % {TASKS}, jsonb_build_object('order_id', g), (ARRAY['default', 'mail', 'reports'])[1 + g % 3],
       now() - interval '1 h' + g * interval '1 s' FROM generate_series(1, {WAITING}) AS g;
UPDATE jobrunner.jobs SET state = 'running', worker_id = 1 + id % {ALIVE}, claimed_at = now(), started_at = now(), lease = 1, attempt = 1
WHERE id <= 1000000000 + {RUNNING};
INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at)
SELECT 'web-' || g, 'web', g, 'daemon', '0', '{{default,mail,reports}}',
       ARRAY(SELECT 'shop.task_' || t FROM generate_series(0, {TASKS}) AS t), 8,
       now() + interval '10 h' FROM generate_series(1, {ALIVE}) AS g;
INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, stopped_at, last_exit)
SELECT 'cron-' || g, 'web', g, 'cron', '0', '{{default}}', '{{}}', 2, now() - g * interval '1 min', now() - g * interval '1 min', 'drained'
FROM generate_series(1, {STOPPED}) AS g;
"""  # noqa: S608  constants; it has no parameters


def build(dsn: str, rows: int) -> None:
    """Fill a migrated, empty database; about a minute for each million rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET maintenance_work_mem = '256MB'")
        connection.execute("SET synchronous_commit = off")
        began, first = time.monotonic(), 1
        for ago in range(DAYS, -1, -1):
            count = rows * (DAYS + 1 - ago) // (DAYS + 1) - (first - 1)
            _day(connection, ago, first, count)
            first += count
            print(f"history: {first - 1:,} rows after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        connection.execute(_LIVE)  # type: ignore[arg-type]
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def _day(connection: psycopg.Connection, ago: int, first: int, count: int) -> None:
    row = connection.execute(
        "SELECT to_char(d, 'YYYYMMDD'), d::text, (d + 1)::text FROM (SELECT (now() AT TIME ZONE 'UTC')::date - %s AS d) t", (ago,)
    ).fetchone()
    day, low, high = row or ("", "", "")
    bounds = f"FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
    history, attempts = f"job_history_{day}", f"job_attempts_{day}"
    for table, part in (("job_history", history), ("job_attempts", attempts)):
        if connection.execute("SELECT to_regclass(%s)", (f"jobrunner.{part}",)).fetchone() == (None,):
            connection.execute(f"CREATE TABLE jobrunner.{part} (LIKE jobrunner.{table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        else:
            connection.execute(f"ALTER TABLE jobrunner.{table} DETACH PARTITION jobrunner.{part}")
        query = (_HISTORY if table == "job_history" else _ATTEMPTS).format(part=part, history=history)
        connection.execute(query, {"ago": ago, "first": first, "count": count})  # type: ignore[arg-type]
        connection.execute(f"ALTER TABLE jobrunner.{table} ATTACH PARTITION jobrunner.{part} {bounds}")  # type: ignore[arg-type]
    for period in ("hour", "minute") if ago <= 2 else ("hour",):  # noqa: PLR2004  as long as minutes are kept: 72 hours
        if period == "minute" and ago == 2:  # noqa: PLR2004
            minutes = f"rollup_minute_{day}"
            connection.execute(f"CREATE TABLE IF NOT EXISTS jobrunner.{minutes} PARTITION OF jobrunner.rollup_minute {bounds}")  # type: ignore[arg-type]
        query = _ROLLUPS.format(period=period, numbers=_NUMBERS, counts=_COUNTS, history=history)
        connection.execute(query)  # type: ignore[arg-type]
