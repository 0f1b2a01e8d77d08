"""Owns the targets: which figure, against what, and how much. The numbers are demands; nothing measured stands here."""

from __future__ import annotations

from bench.figures import Best, Bound, Reading, Target

RATE = "jobs_per_second"
OURS_BEST, OURS_DEFAULT = Reading("drain", "jobrunner, best", RATE), Reading("drain", "jobrunner, default", RATE)


def _waiting(way: str, slots: int, share: float) -> Bound:
    """The share of what so many slots could do of jobs that take 100 ms."""
    return Bound(Reading("waiting-jobs", f"jobrunner, {way}, 100 ms", RATE), "≥", share * slots * 10, "jobs/s")


TARGETS = (
    Target(
        1,
        "Drain of no-op jobs at the best settings: 1.2 times PgQueuer at its best, half of the bare loop with two clients",
        (
            Bound(OURS_BEST, "≥", 1.2, "×", Reading("drain", "pgqueuer, best", RATE)),
            Bound(OURS_BEST, "≥", 0.5, "×", Reading("drain", "bare, 2 clients", RATE)),
        ),
    ),
    Target(
        2,
        "Drain of no-op jobs at the defaults: three times the best of the peers' defaults",
        (Bound(OURS_DEFAULT, "≥", 3, "×", Best("drain", RATE, rank="default")),),
    ),
    Target(
        3,
        "CPU of a no-op job, all processes and PostgreSQL: 0.10 ms",
        (Bound(Reading("drain", "jobrunner, best", "cpu_ms_per_job"), "≤", 0.10, "ms"),),
    ),
    Target(
        4,
        "One enqueue in its own transaction: 0.85 of psycopg's INSERT and commit",
        (Bound(Reading("enqueue-single", "jobrunner", RATE), "≥", 0.85, "×", Reading("enqueue-single", "bare", RATE)),),
    ),
    Target(
        5,
        "Enqueue from eight threads: 0.85 of eight bare inserters",
        (Bound(Reading("enqueue-threads", "jobrunner", RATE), "≥", 0.85, "×", Reading("enqueue-threads", "bare", RATE)),),
    ),
    Target(
        6,
        "A job more in the caller's transaction: 150 µs",
        (Bound(Reading("enqueue-transaction", "jobrunner", "us_per_job"), "≤", 150, "µs"),),
    ),
    Target(
        7,
        "Many at once: 0.7 of COPY from Python, 1.5 times PgQueuer's",
        (
            Bound(Reading("enqueue-bulk", "jobrunner", RATE), "≥", 0.7, "×", Reading("enqueue-bulk", "bare", RATE)),
            Bound(Reading("enqueue-bulk", "jobrunner", RATE), "≥", 1.5, "×", Reading("enqueue-bulk", "pgqueuer", RATE)),
        ),
    ),
    Target(
        8,
        "Pickup on an idle queue: half of the jobs within 3 ms, 99 % within 6; without LISTEN half of them within half the poll interval",
        (
            Bound(Reading("pickup-idle", "jobrunner", "p50_ms"), "≤", 3, "ms"),
            Bound(Reading("pickup-idle", "jobrunner", "p99_ms"), "≤", 6, "ms"),
            Bound(Reading("pickup-idle", "jobrunner, polling only", "p50_ms"), "≤", 500, "ms"),
        ),
    ),
    Target(
        9,
        "Round trip from enqueue to the result: half of them within 6 ms",
        (Bound(Reading("roundtrip", "jobrunner", "p50_ms"), "≤", 6, "ms"),),
    ),
    Target(
        10,
        "An idle worker with two children: 0.5 % of a core in all, 5 statements a second, 3 connections",
        (
            Bound(Reading("idle", "jobrunner", "cpu_percent"), "≤", 0.5, "%"),
            Bound(Reading("idle", "jobrunner", "queries_per_second"), "≤", 5, "a second"),
            Bound(Reading("idle", "jobrunner", "connections"), "≤", 3, "connections"),
        ),
    ),
    Target(
        11,
        "A backlog, jobs for later at a more urgent priority, history: each within 10 % of an empty database",
        tuple(
            Bound(Reading("depth", f"jobrunner, {what}", RATE), "≥", 0.9, "×", Reading("depth", "jobrunner, empty", RATE))
            for what in ("backlog", "jobs for later", "history")
        ),
    ),
    Target(
        12,
        "The last tenth under a pinned snapshot: 0.8 of the pace without it",
        (
            Bound(
                Reading("pinned", "jobrunner, pinned", "last_tenth_per_second"),
                "≥",
                0.8,
                "×",
                Reading("pinned", "jobrunner, unpinned", RATE),
            ),
        ),
    ),
    Target(
        13,
        "Jobs that wait for 100 ms: 0.9 of what 100 slots of threads or coroutines, and 20 processes, can do",
        (_waiting("threads", 100, 0.9), _waiting("async", 100, 0.9), _waiting("processes", 20, 0.9)),
    ),
    Target(
        14,
        "WAL of a job, arguments and history kept: 1,500 bytes",
        (Bound(Reading("drain", "jobrunner, best", "wal_bytes_per_job"), "≤", 1500, "bytes"),),
    ),
    Target(
        15,
        "64 workers on one queue: 0.7 of the best pace, nothing runs twice, 3 connections each",
        (
            Bound(Reading("workers", "jobrunner × 64", RATE), "≥", 0.7, "×", Best("workers", RATE, kind="ours")),
            Bound(Reading("workers", "jobrunner × 64", "ran_twice"), "≤", 0, "jobs"),
            Bound(Reading("workers", "jobrunner × 64", "connections_per_worker"), "≤", 3, "connections"),
        ),
    ),
    Target(
        16,
        "Memory of a worker with two children and a Flask application of 300 modules: 120 MB in all",
        (Bound(Reading("idle", "jobrunner, large application", "memory_mb"), "≤", 120, "MB"),),
    ),
)
