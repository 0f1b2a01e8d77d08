"""Bulk changes lock in id order: two that overlap, given in opposite order, wait for each other and never deadlock."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest

from jobrunner.jobs import Ending, Note, Succeeded, Unsuccessful
from jobrunner.states import State
from tests.support.rows import EXPIRED, LEASE
from tests.support.sessions import PATIENCE

COUNT = 12
# What the planner knows of the table. A small one that it has seen, full or empty, is read page by page, in no order of ids.
STATISTICS = ["never", "full", "empty"]
FINISHES = [None, Ending.RETRY, Ending.FAIL, Ending.SNOOZE, Ending.RELEASE, Ending.CRASH, Ending.ABORT]
BY_STATE: dict[State, list[Any]] = {
    State.RUNNING: ["request_cancel", "start", "note", "rescue", "mixed", *FINISHES],
    State.QUEUED: ["cancel", "run_now"],
    State.FAILED: ["requeue"],
}


def pairs():
    """Every two bulk changes that can want the same jobs."""
    return [
        pytest.param(state, one, other, id=f"{one or 'succeed'}-{other or 'succeed'}".lower())
        for state, verbs in BY_STATE.items()
        for one, other in itertools.combinations_with_replacement(verbs, 2)
    ]


def outcome(ending, job_id):
    """The end of one attempt; without an ending it succeeded."""
    return Succeeded(job_id, LEASE, None, 1, 1, 1.0) if ending is None else Unsuccessful(ending, job_id, LEASE, run_ms=1, delay_ms=0)


def bulk(session, verb, ids):
    """A bulk change of these jobs, given in this order."""
    if verb == "rescue":
        return session.store.rescue
    if verb == "start":
        return lambda: session.store.start([(job_id, LEASE, 1.0) for job_id in ids])
    if verb == "note":
        return lambda: session.store.note([Note(job_id, LEASE, 0.5) for job_id in ids])
    if verb == "mixed":  # each ending has statements of its own, which run one after the other
        endings = itertools.cycle(FINISHES)
        return lambda: session.store.finish([outcome(ending, job_id) for ending, job_id in zip(endings, ids, strict=False)])
    if verb is None or isinstance(verb, Ending):
        return lambda: session.store.finish([outcome(verb, job_id) for job_id in ids])
    return lambda: session.run(verb, {"ids": ids})


def know(scene):
    """Statistics of the tables as they are now."""
    for table in ("jobs", "job_history"):
        scene.execute(f"VACUUM ANALYZE jobrunner.{table}")


def facts(state, worker, number):
    """Running jobs of three kinds in turn: with nothing left to try, asked to stop, and neither."""
    if state is not State.RUNNING:
        return {}
    common = {"worker_id": worker, "max_crashes": 9, "started_at": "=now()"}
    return [{**common, "max_crashes": 1, "max_attempts": 1}, {**common, "cancel_requested_at": "=now()"}, common][number % 3]


def begin(session, verb, scene):
    """How to start a bulk change that meets a locked job: a rescue goes past it, everything else waits."""
    return session.call if verb == "rescue" else partial(session.call_blocked, observer=scene)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize(("state", "one", "other"), pairs())
def test_overlapping_bulk_changes_in_opposite_order_do_not_deadlock(scene, sessions, state, one, other, statistics):
    """Both are held up at a job in the middle; when it is let go both come to their end, whatever the planner knows of the table."""
    worker = scene.worker(EXPIRED)
    base = scene.job()
    scene.execute("DELETE FROM jobrunner.jobs WHERE id = %s", (base,))
    if statistics == "empty":
        know(scene)
    # Stored in the opposite order of their ids, so that a scan of the table is no help; and with several ways to end.
    ids = sorted(scene.job(state, id=base + COUNT - number, attempt=1, **facts(state, worker, number)) for number in range(COUNT))
    scene.execute("SELECT setval(pg_get_serial_sequence('jobrunner.jobs', 'id'), %s)", (base + COUNT,))
    if statistics == "full":
        know(scene)
    holder, first, second = sessions(), sessions(), sessions()
    table = "job_history" if state is State.FAILED else "jobs"
    with holder.connection.transaction():
        holder.execute(f"SELECT FROM jobrunner.{table} WHERE id = %s FOR UPDATE", (ids[COUNT // 2],))
        one_call = begin(first, one, scene)(bulk(first, one, ids))
        other_call = begin(second, other, scene)(bulk(second, other, ids[::-1]))
    assert one_call.exception(PATIENCE) is None
    assert other_call.exception(PATIENCE) is None
    assert all(len(scene.rows(job_id)) == 1 for job_id in ids)
