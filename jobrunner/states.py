"""Owns the state machine of a job as data: the states and every transition between them.

It must not do I/O nor import anything of ours. The SQL files, the CHECK constraints, the docs' diagram and the
state × transition × lease test are all held against this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job is. The first two are live rows of `jobs`, the others finished rows of `job_history`."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"


LIVE = frozenset({State.QUEUED, State.RUNNING})
FINISHED = frozenset(State) - LIVE


@dataclass(frozen=True, slots=True)
class Transition:
    """One allowed change of state, carried out by the SQL file of the same name.

    Attributes:
        name: a verb; `jobrunner/sql/<name>.sql` does it.
        sources: states it may start from; empty for the one that makes the row.
        target: the state it leads to.
        fenced: True when the statement carries the lease of the attempt and a superseded attempt changes nothing.
        by: who asks for it: `worker` (about its own attempt), `pool` (any worker, about a lost one), `operator` or `application`.
    """

    name: str
    sources: frozenset[State]
    target: State
    fenced: bool
    by: str


def _of(*states: State) -> frozenset[State]:
    return frozenset(states)


TRANSITIONS: tuple[Transition, ...] = (
    Transition("claim", _of(State.QUEUED), State.RUNNING, fenced=False, by="worker"),
    Transition("claim_ordered", _of(State.QUEUED), State.RUNNING, fenced=False, by="worker"),
    Transition("start", _of(State.RUNNING), State.RUNNING, fenced=True, by="worker"),
    Transition("progress", _of(State.RUNNING), State.RUNNING, fenced=True, by="worker"),
    Transition("succeed", _of(State.RUNNING), State.SUCCEEDED, fenced=True, by="worker"),
    Transition("retry", _of(State.RUNNING), State.QUEUED, fenced=True, by="worker"),
    Transition("fail", _of(State.RUNNING), State.FAILED, fenced=True, by="worker"),
    Transition("snooze", _of(State.RUNNING), State.QUEUED, fenced=True, by="worker"),
    Transition("release", _of(State.RUNNING), State.QUEUED, fenced=True, by="worker"),
    Transition("abort", _of(State.RUNNING), State.CANCELLED, fenced=True, by="worker"),
    Transition("crash", _of(State.RUNNING), State.QUEUED, fenced=True, by="worker"),
    Transition("quarantine", _of(State.RUNNING), State.QUARANTINED, fenced=True, by="worker"),
    Transition("rescue", _of(State.RUNNING), State.QUEUED, fenced=False, by="pool"),
    Transition("rescue_quarantine", _of(State.RUNNING), State.QUARANTINED, fenced=False, by="pool"),
    Transition("rescue_abort", _of(State.RUNNING), State.CANCELLED, fenced=False, by="pool"),
    Transition("expire", _of(State.QUEUED), State.CANCELLED, fenced=False, by="pool"),
    Transition("cancel", _of(State.QUEUED), State.CANCELLED, fenced=False, by="operator"),
    Transition("request_cancel", _of(State.RUNNING), State.RUNNING, fenced=False, by="operator"),
    Transition("run_now", _of(State.QUEUED), State.QUEUED, fenced=False, by="operator"),
    Transition("redrive", _of(State.FAILED, State.QUARANTINED), State.QUEUED, fenced=False, by="operator"),
    Transition("requeue", _of(State.FAILED, State.CANCELLED, State.QUARANTINED), State.QUEUED, fenced=False, by="operator"),
)


def sources_of(name: str) -> frozenset[State]:
    """The states from which transition `name` may start. Raises KeyError for a name that is not in the table."""
    return _BY_NAME[name].sources


_BY_NAME = {transition.name: transition for transition in TRANSITIONS}
