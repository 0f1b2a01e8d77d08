"""Owns one sensible call of every statement, over tables filled to a size: for plans, and for pasting into psql."""

from __future__ import annotations

from typing import Any, NamedTuple

from jobrunner.states import TRANSITIONS
from tests.support.brokercalls import BROKER_CALLS
from tests.support.rows import EXPIRED, FINISHED_COLUMNS, LEASE, TASK, Scene, array, fenced_parameters

MOST = 50  # where a statement that counts stops
RUNNING = 2000  # running jobs beside the queued ones, half of them under a lost worker
FENCED = [transition.name for transition in TRANSITIONS if transition.fenced]


class Filled(NamedTuple):
    """The rows that `fill` made."""

    queued: int
    first_queued: int
    first_running: int
    alive: int
    lost: int


def fill(scene: Scene, size: int, statistics: str) -> Filled:
    """`size` queued and as many finished jobs, and some running ones; statistics made after, before, or not at all."""
    scene.execute("ALTER TABLE jobrunner.jobs SET (autovacuum_enabled = false)")
    if statistics == "stale":
        gather(scene)
    alive, lost = scene.worker(), scene.worker(EXPIRED)
    queued = scene.execute(
        "INSERT INTO jobrunner.jobs (task, priority, unique_key, run_at)"
        " SELECT %s, g %% 2, 'key ' || g, now() - interval '1 day' + g * interval '1 millisecond'"
        " FROM generate_series(1, %s) AS g RETURNING id",
        (TASK, size),
    ).fetchone()
    running = scene.execute(
        "INSERT INTO jobrunner.jobs (task, state, lease, attempt, worker_id, claimed_at)"
        " SELECT %s, 'running', %s, 1, CASE WHEN g %% 2 = 0 THEN %s ELSE %s END, now() FROM generate_series(1, %s) AS g RETURNING id",
        (TASK, LEASE, alive, lost, RUNNING if size else 0),
    ).fetchone()
    columns = ", ".join(FINISHED_COLUMNS)
    values = ", ".join({"id": "-id", "state": "'failed'", "unique_key": "NULL"}.get(name, name) for name in FINISHED_COLUMNS)
    scene.execute(
        f"INSERT INTO jobrunner.job_history ({columns}, finished_at)"
        f" SELECT {values}, now() + (id % 3 - 1) * interval '1 day' FROM jobrunner.jobs WHERE state = 'queued'"
    )
    if statistics == "analysed":
        gather(scene)
    return Filled(size, queued[0] if queued else 1, running[0] if running else 1, alive, lost)


def gather(scene: Scene) -> None:
    """Fresh statistics, and no dead rows."""
    for table in ("jobs", "job_history", "job_attempts", "workers"):
        scene.execute(f"VACUUM ANALYZE jobrunner.{table}")


def parameters(filled: Filled, batch: int) -> dict[str, dict[str, Any]]:
    """For each statement what it is called with, for a batch of jobs from the middle of the tables."""
    attempts = [(filled.first_running + number, LEASE) for number in range(batch)]
    first = filled.first_queued + filled.queued // 2
    queued: dict[str, Any] = {"ids": list(range(first, first + min(batch, max(1, filled.queued // 2))))}
    counts = {"succeeded": 1, "failed": 1, "crashed": 1, "claimed": 2}
    register = {"name": "w", "host": "h", "pid": 1, "kind": "test", "version": "0", "queues": [], "tasks": [], "slots": 1, "lease_ms": 1}
    slot = {"pool": "default", "pool_slot": 1}
    return {
        **BROKER_CALLS,
        **{name: fenced_parameters(name, attempts, delay_ms=5) for name in FENCED},
        "claim": {
            "worker_id": filled.alive, "tasks": [TASK, "another"], "queue": "default", "priority": 0, "take": batch, "past_gate": False,
            "floor_run_at": "1969-12-31 00:00+00", "floor_id": 0,
        },
        "claim_ordered": {
            "worker_id": filled.alive, "tasks": [TASK, "another"], "queue": "default", "priority": 0, "take": batch, "given": ["a key"],
            "floor_key": "", "keys": 100,
        },
        "expire": {"most": batch},
        "find_due": {"queues": ["default", "none"]},
        "cancel": queued, "run_now": queued, "request_cancel": {"ids": [job_id for job_id, _ in attempts]},
        "requeue": {"ids": [-job_id for job_id in queued["ids"]]},
        **{name: {"ids": [-job_id for job_id in queued["ids"]], "queue": "default", "task": TASK} for name in ("redrive", "purge_dead")},
        "renew": {"id": attempts[0][0], "lease": LEASE, "lease_ms": 1000}, "drop_consumer": {"worker_id": filled.lost},
        **{name: {"worker_ids": [filled.lost]} for name in ("look_again", "rescue", "rescue_abort", "rescue_quarantine")},
        "hold": {"ids": array(job_id for job_id, _ in attempts), "leases": array(lease for _, lease in attempts)},
        "held_jobs": {"worker_id": filled.alive}, "job_state": {"id": -first},
        "has_succeeded": {"ids": [-job_id for job_id in queued["ids"]], "leases": [LEASE] * len(queued["ids"])},
        "heartbeat": {"worker_id": filled.alive, "lease_ms": 1000, "rss_bytes": None, "memory_bytes": None, "running": "[]", **counts},
        "stop_worker": {"worker_id": filled.alive, "last_exit": "done", "exit_code": 0, "error": None, "left_count": 0, "next_due_at": "2026-11-25 12:05+00", **counts},
        "register_worker": {**register, "pool": None, "pool_slot": None}, "give_up_slot": slot,
        "set_tasks": {"worker_id": filled.alive, "tasks": [TASK]},
        "log": {
            "ids": array(job_id for job_id, _ in attempts), "leases": array(lease for _, lease in attempts), "lines": array([1] * batch),
            "levels": array([20] * batch), "loggers": ["shop"] * batch, "messages": ["sold"] * batch, "age_ms": array([3] * batch),
        },
        "any_lost": {}, "lost_workers": {}, "ensure_partitions": {"ahead": 7},
        "left_due": {"queues": ["default", "none"], "most": MOST},
        "prune_workers": {"keep_ms": 86_400_000, "most": 100}, "prune_worker_runs": {"keep_ms": 86_400_000, "most": 100},
        "drop_partitions": {"parent": "job_logs", "keep_ms": 30 * 86_400_000, "most": 2},
        "settle_rollups": {"age_ms": 120_000, "minutes_ms": 3 * 86_400_000, "most": 100},
        "take_turn": {"worker_id": 1, "turn_ms": 1000},
        "prune_rollup_hours": {"keep_ms": 400 * 86_400_000, "most": 100},
    }  # fmt: skip
