"""Owns the scenarios of a full database: does the pace hold with a backlog, jobs for later, history, and with a pinned snapshot?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg

from bench import contenders
from bench.draining import Drained, watch
from bench.suite import Entry, Measured, Scenario, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.contenders import Contender
    from bench.environments import Peer

SETTING = "best"
WARM_UP = 500  # jobs
SOONEST, STEP = 86_400, 0.01  # seconds: the first of the jobs for later is due in a day, the next a hundredth of a second after
URGENT = -10


def drain_some(contender: Contender, count: int) -> tuple[Drained, str]:
    """Add `count` due jobs to whatever is there, and measure until as many have run."""
    contenders.marks.clear(contender.marks)
    contender.ask("fill", task="noop", argument=0, count=count)
    contender.servers.settle()
    with contender.workers(SETTING) as workers:
        return watch(contender, workers, count, left=lambda: False), workers.described


@contextlib.contextmanager
def pinned(contender: Contender) -> Iterator[None]:
    """A session that holds a snapshot, as a report or a dump does."""
    with psycopg.connect(contender.servers.server.dsn(contender.database)) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pg_class")
        yield
        connection.rollback()


def _depth(first: Callable[[Contender, Sizes], object] | None) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    """The pace in a database that `first` has filled; without it, in an empty one."""

    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        count = round(sizes["jobs"])
        if first is not None:
            first(contender, sizes)
        drain_some(contender, WARM_UP)

        def measure() -> Measured:
            if first is None:
                contender.clear()
            drained, described = drain_some(contender, count)
            return {
                "jobs_per_second": drained.count / drained.seconds,
                "cpu_ms_per_job": drained.cpu_seconds * 1000 / drained.count,
            }, described

        return measure

    return prepare


def _pinned(*, pin: bool) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        count = round(sizes["pinned_jobs"])
        contender.clear()
        drain_some(contender, WARM_UP)

        def measure() -> Measured:
            contender.clear()
            with pinned(contender) if pin else contextlib.nullcontext():
                drained, described = drain_some(contender, count)
            return {"jobs_per_second": drained.count / drained.seconds, "last_tenth_per_second": drained.last_tenth_per_second}, described

        return measure

    return prepare


def _backlog(contender: Contender, sizes: Sizes) -> None:
    contender.ask("fill", task="noop", argument=0, count=round(sizes["backlog"]))


def _later(contender: Contender, sizes: Sizes) -> None:
    contender.ask("fill", task="noop", argument=0, count=round(sizes["later"]), priority=URGENT, later=SOONEST, step=STEP)


def _history(contender: Contender, sizes: Sizes) -> None:
    contender.ask("history", count=round(sizes["history"]))


FILLED = {"empty": None, "backlog": _backlog, "jobs for later": _later, "history": _history}
PEERS = ("bare", "pgqueuer")  # of the peers the fastest: a measurement is 200,000 jobs


def _depth_entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:
    entries = []
    for peer in peers:
        ways = FILLED if peer.kind == "ours" else {name: FILLED[name] for name in ("empty", "backlog")}
        if peer.kind == "ours" or (peer.name in PEERS and sizes["peers"]):
            entries += [
                Entry(f"{peer.name}, {name}", peer.name, _depth(first), rank=name, database=name.replace(" ", "_"))
                for name, first in ways.items()
            ]
    return entries


def _pinned_entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:
    return [
        Entry(f"{peer.name}, {name}", peer.name, _pinned(pin=pin), rank=name)
        for peer in peers
        if peer.kind == "ours" or (peer.name in PEERS and sizes["peers"])
        for name, pin in (("unpinned", False), ("pinned", True))
    ]


SCENARIOS = (
    Scenario(
        "depth",
        "A full database",
        "The pace of no-op jobs, at the best settings, while the database also holds a backlog, jobs that are due later at a more "
        "urgent priority, or finished jobs. Each in a database of its own, all measured in the same run. Peers get the backlog only, as "
        "their history is theirs to shape; and of them only the fastest takes part, since the others would need half a minute to minutes "
        "for each measurement.",
        "jobs_per_second",
        {"jobs": 10_000, "backlog": 100_000, "later": 100_000, "history": 500_000, "peers": 0},
        {"jobs": 200_000, "backlog": 1_000_000, "later": 1_000_000, "history": 10_000_000, "peers": 1},
        _depth_entries,
    ),
    Scenario(
        "pinned",
        "A pinned snapshot",
        "The pace of no-op jobs while another session holds a snapshot from before the first to after the last, so that nothing dead can "
        "be cleaned up; and the pace of the last tenth of them.",
        "last_tenth_per_second",
        {"pinned_jobs": 20_000, "peers": 0},
        {"pinned_jobs": 1_000_000, "peers": 1},
        _pinned_entries,
    ),
)
