"""Owns the four scenarios: what is done to a contender, and which figures come of it.

It must not know any contender, nor print anything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.losing.judge import judge, lateness
from bench.losing.stage import staged

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.environments import Peer
    from bench.losing.judge import Verdict
    from bench.servers import Servers

SLOTS = 2  # as the contenders' workers are started
KILLED_AT = 0.4  # of the jobs have ended: the middle of the work
AWAY = 2.0  # seconds from the kill until the worker is started again
ROUNDS_OF_LONG = 3  # times what the long jobs take when nothing is doubled: the watch in which they must end
SPARE = 20.0  # seconds more of each watch, for pickup and for a busy machine


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        jobs, seconds: of the scenario `kill`.
        watch: seconds from the restart of the worker at most.
        timeout: the visibility timeout, or whatever the contender calls it, of `long` and `later`; in seconds.
        beyond: how much longer than it a long job takes, and a later job is away; in seconds.
        few: jobs of the other scenarios.
    """

    jobs: int = 200
    seconds: float = 0.05
    watch: float = 120.0
    timeout: float = 5.0
    beyond: float = 7.0
    few: int = 4


def kill(peer: Peer, servers: Servers, sizes: Sizes) -> dict[str, Any]:
    """The worker and its children are killed with -9 amid short jobs, at the contender's defaults; restarted after two seconds."""
    numbers = range(1, sizes.jobs + 1)
    with staged(peer, servers) as stage:
        stage.ask("now", numbers=list(numbers), seconds=sizes.seconds)
        stage.wait_for_ends(int(sizes.jobs * KILLED_AT))
        killed = stage.kill()
        time.sleep(AWAY)
        stage.start()
        held, took = stage.watch(numbers, sizes.watch, killed)
        notes = stage.lines()
        begun = {note.number for note in notes if note.at <= killed.gone}
        facts = {"begun_before_the_kill": len(begun), "seconds_after_the_restart": round(took, 1), "torn_lines": stage.torn()}
    return figures(judge(notes, numbers, held, killed, SLOTS)) | facts


def long(peer: Peer, servers: Servers, sizes: Sizes) -> dict[str, Any]:
    """Jobs that run longer than the visibility timeout; the worker is healthy. Twice as many as slots, so that some wait behind others."""
    numbers = range(1, sizes.few + 1)
    with staged(peer, servers, sizes.timeout) as stage:
        timeout, seconds = beyond(stage.setting["fixed_timeout"], sizes)
        stage.ask("now", numbers=list(numbers), seconds=seconds)
        held, _ = stage.watch(numbers, ROUNDS_OF_LONG * seconds * -(-sizes.few // SLOTS) + SPARE)
        notes = stage.lines()
    return figures(judge(notes, numbers, held)) | {"timeout": timeout, "job_seconds": seconds}


def later(peer: Peer, servers: Servers, sizes: Sizes) -> dict[str, Any]:
    """Jobs that are due later than the visibility timeout; the worker is healthy."""
    numbers = range(1, sizes.few + 1)
    with staged(peer, servers, sizes.timeout) as stage:
        timeout, delay = beyond(stage.setting["fixed_timeout"], sizes)
        due = {}
        for number in numbers:
            due[number] = time.monotonic() + delay
            stage.ask("later", numbers=[number], delay=delay)
        held, _ = stage.watch(numbers, delay + sizes.timeout + SPARE)
        notes = stage.lines()
    late = sorted(lateness(notes, due))
    facts = {"timeout": timeout, "delay_seconds": delay, "late_s": [round(late[0], 2), round(late[-1], 2)] if late else None}
    return figures(judge(notes, numbers, held)) | facts


def rollback(peer: Peer, servers: Servers, sizes: Sizes) -> dict[str, Any]:
    """Jobs enqueued inside a transaction that is rolled back, and then as many outside of one, which must run."""
    undone, done = range(1, sizes.few + 1), range(sizes.few + 1, 2 * sizes.few + 1)
    with staged(peer, servers) as stage:
        stage.ask("rolled_back", numbers=list(undone))
        stage.ask("now", numbers=list(done), seconds=0.0)
        held, _ = stage.watch(done, SPARE)
        notes = stage.lines()
    ran = {note.number for note in notes if note.number in undone}
    return figures(judge(notes, done, held)) | {"rolled_back": len(undone), "ran_all_the_same": len(ran)}


SCENARIOS: dict[str, Callable[[Peer, Servers, Sizes], dict[str, Any]]] = {"kill": kill, "long": long, "later": later, "rollback": rollback}


def beyond(fixed: float | None, sizes: Sizes) -> tuple[float, float]:
    """The timeout that holds for a contender, and a time beyond it."""
    timeout = fixed or sizes.timeout
    return timeout, timeout + sizes.beyond


def figures(verdict: Verdict) -> dict[str, Any]:
    """What is kept of a verdict."""
    return {
        "jobs": verdict.jobs,
        "runs": verdict.runs,
        "lost": len(verdict.lost),
        "stuck": len(verdict.stuck),
        "doubled": len(verdict.doubled),
        "doubled_in_flight": len(verdict.in_flight),
        "doubled_healthy": len(verdict.doubled_healthy),
    }
