"""Owns one sensible call of every statement of the broker, over tables that need not hold anything: for plans, and for psql."""

from __future__ import annotations

from typing import Any

_SENT = {
    "priority": 3, "available_at": "2026-11-25 12:05+00", "ttl_ms": 60_000, "task": "shop.sell", "task_id": "4711", "message": "{}",
}  # fmt: skip
_FLOOR = {"priority": 0, "floor_available_at": "1970-01-01 00:00+00", "floor_id": 0}
_DELIVERIES = {"ids": [1, 2], "leases": [1, 1]}

BROKER_CALLS: dict[str, dict[str, Any]] = {
    "broker_publish": {"exchange": "celery", "routing_key": "celery", **_SENT},
    "broker_put": {"queue": "celery", "unclaimed_ms": 86_400_000, **_SENT},
    "broker_claim": {"consumer_id": 1, "queue": "celery", "take": 10, **_FLOOR},
    "broker_take": {"queue": "celery", "take": 10, **_FLOOR},
    "broker_ack": _DELIVERIES,
    "broker_release": _DELIVERIES,
    "broker_reconcile": {"consumer_id": 1, "known": [1, 2]},
    "broker_join": {"host": "h", "pid": 1, "queues": ["celery"], "lease_ms": 30_000},
    "broker_renew": {"consumer_ids": [1, 2]},
    "broker_leave": {"consumer_id": 1},
    "broker_rescue": {"most": 100},
    "broker_declare": {"queue": "celery", "auto_delete": False, "expires_ms": 60_000, "message_ttl_ms": 60_000},
    "broker_touch": {"queues": ["celery", "none"], "hold_ms": 30_000},
    "broker_bind": {"exchange": "celery", "routing_key": "#", "queue": "celery", "kind": "topic", "pattern": "^.*$", "unclaimed_ms": 86_400_000},
    "broker_unbind": {"exchange": "celery", "routing_key": "celery", "queue": "celery"},
    "broker_bindings": {"exchange": "celery"},
    "broker_size": {"queue": "celery", "most": 1000},
    "broker_purge": {"queue": "celery"},
    "broker_delete_queue": {"queue": "celery", "if_empty": False, "if_unused": False},
    "broker_sweep_messages": {"most": 100},
    "broker_sweep_queues": {"most": 100},
    "broker_sweep_orphans": {"most": 100},
    "broker_set_result": {"key": "celery-task-meta-1", "value": "done", "ttl_ms": 60_000},
    "broker_get_results": {"keys": ["celery-task-meta-1", "celery-task-meta-2"]},
    "broker_delete_result": {"keys": ["celery-task-meta-1", "celery-task-meta-2"]},
    "broker_count_result": {"key": "chord-unlock-1", "ttl_ms": 60_000},
    "broker_count_part": {"key": "chord-unlock-2", "part": "chord-unlock-2.1", "ttl_ms": 60_000},
    "broker_expire_result": {"key": "celery-task-meta-1", "ttl_ms": 60_000},
    "broker_sweep_results": {"most": 100},
}
