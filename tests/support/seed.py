"""Owns a database that looks like a working day: jobs in every state, failures with tracebacks, workers alive, lost and stopped.

It must write SQL only: what is there does not depend on the engine, and the same seed always gives the same rows.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    import psycopg

HISTORY_COLUMNS = (
    "id", "task", "args", "queue", "priority", "tags", "meta", "created_at", "run_at", "state", "lease", "attempt", "max_attempts",
    "backoff", "backoff_base", "backoff_cap", "backoff_jitter", "crash_count", "max_crashes", "last_error_type", "last_error",
    "last_error_at", "worker_id", "started_at", "finished_at", "result", "wait_ms", "run_ms", "cpu_ms",
)  # fmt: skip

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/.venv/lib/python3.12/site-packages/jobrunner/worker/child.py", line 118, in run
    value = task.fn(*args, **kwargs)
            ^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/shop/mail.py", line 88, in send_welcome
    response = client.post(f"/v3/{domain}/messages", data=message)
               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/.venv/lib/python3.12/site-packages/httpx/_client.py", line 1144, in post
    return self.request(
           ^^^^^^^^^^^^^
  File "/srv/shop/.venv/lib/python3.12/site-packages/httpx/_client.py", line 825, in request
    return self.send(request, auth=auth, follow_redirects=follow_redirects)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/shop/http.py", line 41, in send
    raise UpstreamTimeout(f"no answer from {request.url.host} in {timeout} s")
shop.http.UpstreamTimeout: no answer from api.mail.example in 30 s
"""

LOGGED = (
    (10, "httpx", "connect_tcp.started host='api.mail.example' port=443"),
    (20, "shop.mail", "sending the welcome to ana@example.com"),
    (20, "", "printed by the task: 3 of 10"),
    (30, "shop.mail", "slow answer: 2.3 s"),
    (40, "shop.http", f"no answer from api.mail.example in 30 s\n{TRACEBACK.rstrip()}"),
    (50, "shop.mail", "giving up"),
)

TASKS: tuple[tuple[str, str, dict[str, Any], Any], ...] = (
    ("send_welcome", "mail", {"user_id": 4711}, "sent"),
    ("mail.newsletter", "mail", {"list": "spring-2026", "batch": 17, "locale": "de_DE"}, {"sent": 500, "bounced": 3}),
    ("resize_image", "media", {"path": "uploads/2026/11/24/9f2c1ab0.jpg", "sizes": [320, 640, 1280]}, ["320.webp", "640.webp"]),
    ("sync_crm", "default", {"account": "acme", "since": "2026-11-24T00:00:00Z", "full": False}, None),
    ("billing.invoice", "billing", {"order_id": 9007199254740993, "currency": "EUR", "total": "129.90"}, {"invoice": "2026-004711"}),
    ("report.daily", "reports", {"day": "2026-11-23", "format": "pdf"}, "s3://reports/2026-11-23.pdf"),
    ("search.reindex", "default", {"model": "Product", "ids": [1, 2, 3, 5, 8, 13, 21, 34]}, 8),
)


def seed(connection: psycopg.Connection[Any], finished: int = 3_000, *, alive: bool = True) -> dict[str, int]:
    """Fill an empty, migrated database. Returns the id of one job of each kind; from 500 finished jobs on, every state is there."""
    rng = random.Random(11)
    row = connection.execute("SELECT now()").fetchone()
    assert row is not None
    now: datetime = row[0].astimezone(UTC)
    workers = _workers(connection, now, alive=alive)
    with connection.cursor() as cursor, cursor.copy(f"COPY jobrunner.job_history ({', '.join(HISTORY_COLUMNS)}) FROM STDIN") as copy:
        for number in range(1, finished + 1):
            copy.write_row(_finished(rng, number, now - timedelta(seconds=(finished - number) * 20 + 40), rng.choice(workers)))
    connection.execute("SELECT setval(pg_get_serial_sequence('jobrunner.jobs', 'id'), %s)", (finished + 1,))
    failed = connection.execute(
        "SELECT id, task, queue, finished_at FROM jobrunner.job_history WHERE state = 'failed' ORDER BY id"
    ).fetchall()
    for job_id, task, queue, finished_at in failed:
        _attempts(connection, job_id, task, queue, finished_at, workers[0])
    ids = _live(connection, now, workers, alive=alive)
    newest = connection.execute("SELECT state, max(id) FROM jobrunner.job_history GROUP BY state").fetchall()
    ids |= {state: int(job_id) for state, job_id in newest}
    _what_they_say(connection, ids)
    return ids


def _what_they_say(connection: psycopg.Connection[Any], ids: dict[str, int]) -> None:
    """Limits, progress, a checkpoint, what it cost, what workers run now; and logs of some jobs."""
    connection.execute(
        "UPDATE jobrunner.jobs SET soft_time_limit = '50 s', time_limit = '1 minute', cpu_limit = '40 s', memory_limit = 256000000, "
        "memory_limit_on_retry = 2, output_limit = 1000000, max_processes = 4, progress = 0.4, progress_text = 'page 4 of 10' "
        "WHERE id = ANY (%s)",
        ([ids["retrying"], ids.get("running", 0)],),
    )
    connection.execute("UPDATE jobrunner.jobs SET checkpoint = %s WHERE id = %s", (Jsonb({"page": 4, "after": "globex-0817"}), ids["retrying"]))
    connection.execute(
        "UPDATE jobrunner.job_attempts SET exit_cause = 'memory', peak_memory = 131000000 WHERE job_id = %s AND attempt = 1", (ids["retrying"],)
    )
    connection.execute("UPDATE jobrunner.job_history SET peak_memory = 48000000 + id % 7 * 9000000 WHERE started_at IS NOT NULL")
    connection.execute("UPDATE jobrunner.workers SET pool = 'nightly', pool_slot = 1 WHERE kind = 'cron'")
    connection.execute(
        "UPDATE jobrunner.workers w SET claimed_count = succeeded_count + failed_count + crashed_count + 3, memory_bytes = rss_bytes + 210000000, "
        "running = (SELECT jsonb_agg(jsonb_build_object('slot', slot, 'job', id, 'task', task, 'attempt', attempt, "
        "'seconds', round(extract(epoch FROM now() - started_at), 1), 'memory', 81000000 + 7000000 * slot)) "
        "FROM (SELECT j.*, row_number() OVER (ORDER BY id) AS slot FROM jobrunner.jobs j WHERE j.worker_id = w.id) AS held)"
    )
    levels, loggers, messages = zip(*LOGGED, strict=True)
    connection.execute(
        "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message) "
        "SELECT j.id, a.lease, l.line, a.lease, j.created_at + a.lease * interval '300 ms' + l.line * interval '40 ms', l.level, l.logger, l.message "
        "FROM jobrunner.v_jobs j, generate_series(1, j.lease) AS a (lease), "
        "unnest(%s::smallint[], %s::text[], %s::text[]) WITH ORDINALITY AS l (level, logger, message, line) WHERE j.id = ANY (%s)",
        (list(levels), list(loggers), list(messages), [ids[kind] for kind in ("running", "failed", "retrying") if kind in ids]),
    )


def seed_topics(connection: psycopg.Connection[Any], dead: int = 120) -> None:
    """Topics with groups in every state, one with none, and dead letters of two queues; nothing of it is in the numbers of `seed`."""
    connection.execute(
        "INSERT INTO jobrunner.subscriptions (topic, group_name, mode, task, patterns, queue, undeclared_at) VALUES "
        "('orders', 'billing', 'queue', 'billing.on_paid', '{order.paid,order.refunded}', 'billing', NULL), "
        "('orders', 'search', 'log', 'search.index', '{#}', 'default', NULL), ('orders', 'audit', 'log', 'audit.keep', '{order.#}', 'default', NULL), "
        "('orders', 'newsletter', 'queue', 'mail.on_first_order', '{order.*}', 'mail', now()), "
        "('returns', 'warehouse', 'log', 'warehouse.expect', '{return.*.accepted}', 'default', NULL)"
    )
    connection.execute(
        "INSERT INTO jobrunner.cursors (topic, group_name, position, delivered_count, stopped_at, problem, job_id) VALUES "
        "('orders', 'search', 0, 0, NULL, NULL, NULL), ('returns', 'warehouse', 0, 0, NULL, NULL, NULL), "
        "('orders', 'audit', 0, 0, now() - interval '2 hours', 'shop.http.UpstreamTimeout: no answer from archive.example in 30 s', 1)"
    )
    connection.execute("INSERT INTO jobrunner.event_skips (job_id, topic, group_name, after_position, to_position) VALUES (1, 'orders', 'search', 0, 1)")
    connection.execute("SELECT jobrunner.publish(t, 'order.shipped', '{}'::jsonb) FROM unnest(ARRAY['orders', 'orders', 'stock']) AS t")
    connection.execute(
        "INSERT INTO jobrunner.job_history (id, task, queue, args, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, "
        "backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, last_error, ordering_key, finished_at) "
        "SELECT 500000 + n, 'jobrunner.message', CASE WHEN n %% 3 = 0 THEN 'parcels' ELSE 'emails' END, "
        "jsonb_build_object('body', jsonb_build_object('to', 'customer' || n || '@example.org', 'text', repeat('your parcel is on its way ', 20))), 0, '{}', "
        "now(), now(), CASE WHEN n %% 7 = 0 THEN 'quarantined' ELSE 'failed' END, 5, 5, 5, 'exponential', '5 s', '1 h', 1, 0, 3, "
        "'smtplib.SMTPRecipientsRefused: the mailbox does not exist', CASE WHEN n %% 2 = 0 THEN 'customer:' || n END, now() - n * interval '1 minute' "
        "FROM generate_series(1, %s) AS n",
        (dead,),
    )


def _workers(connection: psycopg.Connection[Any], now: datetime, *, alive: bool) -> list[int]:
    tasks = [task for task, *_ in TASKS]
    rows = [
        (
            "worker-1@web-1",
            "web-1",
            311,
            "daemon",
            ["default", "mail", "media", "billing"],
            8,
            9_000,
            None,
            None,
            148_000_000,
            41_202,
            377,
            2,
        ),
        ("worker-2@web-2", "web-2", 298, "daemon", ["default", "mail"], 4, 4_000, None, None, 131_500_000, 18_040, 102, 0),
        ("cron@web-1", "web-1", 20811, "cron", ["reports"], 1, 140, 90, "ok", 64_200_000, 212, 1, 0),
        ("cron@web-1", "web-1", 20244, "cron", ["reports"], 1, 200, 150, "ok", 63_900_000, 198, 0, 0),
        ("worker-1@web-3", "web-3", 88, "daemon", ["default"], 4, 90_000, 1_100, "lost", 512_000_000, 7_310, 44, 3),
    ]
    ids = []
    for name, host, pid, kind, queues, slots, started, stopped, last_exit, rss, done, failed, crashed in rows:
        lives = stopped is None and alive
        stopped_at = None if stopped is None else now - timedelta(seconds=stopped)
        if stopped is None and not alive:
            stopped_at = now - timedelta(minutes=6)
        beat = now - timedelta(seconds=4) if lives else stopped_at
        found = connection.execute(
            "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, started_at, heartbeat_at, "
            "lease_expires_at, stopped_at, last_exit, rss_bytes, succeeded_count, failed_count, crashed_count) "
            "VALUES (%s, %s, %s, %s, '0.1.0', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id",
            (
                name, host, pid, kind, queues, tasks, slots, now - timedelta(seconds=started), beat,
                (beat or now) + timedelta(hours=1 if lives else 0), stopped_at,
                last_exit or (None if lives else "ok"), rss, done, failed, crashed,
            ),
        ).fetchone()  # fmt: skip
        assert found is not None
        ids.append(found[0])
    return ids


def _finished(rng: random.Random, number: int, finished_at: datetime, worker: int) -> tuple[Any, ...]:
    task, queue, args, result = TASKS[rng.choices(range(len(TASKS)), (30, 8, 22, 14, 12, 2, 12))[0]]
    state = rng.choices(("succeeded", "failed", "cancelled", "quarantined"), (940, 40, 14, 6))[0]
    run, wait = 1_000 if state == "failed" else int(rng.lognormvariate(5.5, 1.4)) + 2, int(rng.lognormvariate(3.5, 1.8))
    attempt = 3 if state == "failed" else 0 if state == "cancelled" else 2 if rng.random() < 0.03 else 1
    wrong = state in ("failed", "quarantined") or attempt > 1
    error = {"failed": "shop.http.UpstreamTimeout", "quarantined": "WorkerProcessDied"}.get(state, "ConnectionResetError")
    message = {"failed": "no answer from api.mail.example in 30 s", "quarantined": "killed by signal 9 (out of memory?)"}.get(
        state, "[Errno 104] reset"
    )
    began = finished_at - timedelta(milliseconds=run)
    started = began if state != "cancelled" else None
    ended = Jsonb(result) if state == "succeeded" and result is not None else None
    return (
        number, task, Jsonb({**args, "n": number}), queue, 0, ["nightly"] if number % 50 == 0 else [], None,
        began - timedelta(milliseconds=wait) - timedelta(seconds=130 if attempt > 1 else 0), began - timedelta(milliseconds=wait), state,
        max(attempt, 1), attempt, 3 if state == "failed" else 5, "exponential", timedelta(seconds=5), timedelta(hours=1), 1.0,
        3 if state == "quarantined" else 0, 3, error if wrong else None, message if wrong else None, finished_at if wrong else None,
        worker if state != "cancelled" else None, started, finished_at, ended, wait if started else None, run if started else None,
        run // 3 if started else None,
    )  # fmt: skip


def _attempts(connection: psycopg.Connection[Any], job_id: int, task: str, queue: str, finished_at: datetime, worker: int) -> None:
    for attempt, before in ((1, 85), (2, 45), (3, 0)):
        ended = finished_at - timedelta(seconds=before)
        connection.execute(
            "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, finished_at, outcome, "
            "error_type, message, "
            "traceback, fingerprint, exit_cause, run_ms, cpu_ms) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                job_id, attempt, attempt, worker, task, queue, ended - timedelta(seconds=30 if attempt < 3 else 1), ended,
                "failed" if attempt == 3 else "retried", "shop.http.UpstreamTimeout", "no answer from api.mail.example in 30 s", TRACEBACK,
                "9f86d081884c7d65", "exception", 30_000 if attempt < 3 else 1_000, 120,
            ),
        )  # fmt: skip


def _live(connection: psycopg.Connection[Any], now: datetime, workers: list[int], *, alive: bool) -> dict[str, int]:
    ids = {}
    for index, (task, queue, args, _) in enumerate(TASKS * 3):
        ids["queued"] = _insert(
            connection, task, queue, args, created_at=now - timedelta(seconds=40 - index), run_at=now - timedelta(seconds=40 - index)
        )
    ids["unserved"] = _insert(
        connection, "export.gdpr", "default", {"user_id": 815}, created_at=now - timedelta(minutes=9), run_at=now - timedelta(minutes=9)
    )
    _insert(connection, "video.encode", "gpu", {"id": 3}, created_at=now - timedelta(minutes=3), run_at=now - timedelta(minutes=3))
    ids["scheduled"] = _insert(
        connection, "report.daily", "reports", {"day": "2026-11-24"}, created_at=now, run_at=now + timedelta(hours=7, minutes=12)
    )
    ids["retrying"] = _insert(
        connection, "sync_crm", "default", {"account": "globex"}, created_at=now - timedelta(seconds=125),
        run_at=now + timedelta(seconds=48),
        attempt=2, lease=2, last_error_type="shop.http.UpstreamTimeout", last_error="no answer from crm.example in 30 s", last_error_at=now,
    )  # fmt: skip
    _attempts(connection, ids["retrying"], "sync_crm", "default", now - timedelta(seconds=2), workers[0])
    connection.execute("DELETE FROM jobrunner.job_attempts WHERE job_id = %s AND attempt = 3", (ids["retrying"],))
    for index, (task, queue, args, _) in enumerate(TASKS[:5] if alive else ()):
        began = now - timedelta(seconds=2 + 11 * index)
        ids["running"] = _insert(
            connection, task, queue, args, created_at=began - timedelta(seconds=1), run_at=began - timedelta(seconds=1), state="running",
            attempt=1, lease=1, worker_id=workers[index % 2], claimed_at=began, started_at=began,
        )  # fmt: skip
    return ids


def _insert(connection: psycopg.Connection[Any], task: str, queue: str, args: dict[str, Any], **columns: Any) -> int:
    values = {"task": task, "queue": queue, "args": Jsonb(args), **columns}
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    statement = f"INSERT INTO jobrunner.jobs ({names}) VALUES ({marks}) RETURNING id"
    found = connection.execute(statement, values).fetchone()
    assert found is not None
    return int(found[0])
