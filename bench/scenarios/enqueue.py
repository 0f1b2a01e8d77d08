"""Owns the scenarios of producers: one job a call, eight threads, in the caller's transaction, many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.draining import size_for
from bench.suite import Entry, Measured, Scenario, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.contenders import Contender
    from bench.environments import Peer

THREADS = 8
MOST = 100_000  # jobs of one measurement, and of a bulk call
MICROSECONDS = 1e6


def _single(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
    return _rate(contender, sizes, "single", "one call, one commit, again and again")


def _threads(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
    return _rate(contender, sizes, "threads", f"{THREADS} at once", threads=THREADS)


def _rate(contender: Contender, sizes: Sizes, do: str, described: str, **more: int) -> Callable[[], Measured]:
    def once(count: int) -> float:
        contender.clear()
        contender.servers.settle()
        return float(contender.ask(do, count=count // THREADS * THREADS, **more))

    count = max(THREADS, size_for(sizes["seconds"], MOST, once) // THREADS * THREADS)
    return lambda: ({"jobs_per_second": count / once(count)}, described)


def _bulk(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
    def once(count: int) -> float:
        contender.clear()
        contender.servers.settle()
        return float(contender.ask("bulk", count=count))

    count = round(sizes["jobs"])
    once(max(1, count // 100))  # connections, prepared statements, imports
    return lambda: ({"jobs_per_second": count / once(count)}, f"one call for {count:,}")


def _transaction(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
    jobs = round(sizes["jobs_each"])

    def once(count: int, each: int) -> float:
        contender.clear()
        contender.servers.settle()
        return float(contender.ask("transaction", count=count, jobs=each))

    count = size_for(sizes["seconds"], MOST // jobs, lambda count: once(count, jobs))

    def measure() -> Measured:
        without, with_jobs = once(count, 0), once(count, jobs)
        return {"us_per_job": (with_jobs - without) / (count * jobs) * MICROSECONDS}, f"{jobs} jobs beside one row of the application"

    return measure


def _all(prepare: Callable[[Contender, Sizes], Callable[[], Measured]]) -> Callable[[Sequence[Peer], Sizes], list[Entry]]:
    def entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:  # noqa: ARG001  every contender has the same
        return [Entry(peer.name, peer.name, prepare, rank="default") for peer in peers]

    return entries


def _single_entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:  # noqa: ARG001  every contender has the same
    entries = []
    for peer in peers:
        entries.append(Entry(peer.name, peer.name, _single, rank="default"))
        if peer.server == "redis":
            entries.append(Entry(f"{peer.name}, flushed", peer.name, _single, rank="default", flushed=True))
    return entries


SCENARIOS = (
    Scenario(
        "enqueue-single",
        "Enqueue, one call at a time",
        "One process, one job a call, each committed (or taken by the broker) before the next. The bare ones insert the same row, from "
        "Python and from C; neither sends a wake-up. `flushed` is with a Redis that has each job on the disk before it answers, as "
        "PostgreSQL does.",
        "jobs_per_second",
        {"seconds": 0.5},
        {"seconds": 2},
        _single_entries,
        short_peers=("celery", "pgqueuer", "procrastinate"),
    ),
    Scenario(
        "enqueue-threads",
        "Enqueue from eight threads",
        "The same from eight threads of one process; where the library has coroutines only, from eight of them.",
        "jobs_per_second",
        {"seconds": 0.5},
        {"seconds": 2},
        _all(_threads),
        short_peers=("celery", "pgqueuer"),
    ),
    Scenario(
        "enqueue-transaction",
        "Enqueue inside the caller's transaction",
        "What a job adds to a transaction that is made anyway: the time with jobs less the time without, for each job.",
        "us_per_job",
        {"seconds": 0.5, "jobs_each": 10},
        {"seconds": 2, "jobs_each": 10},
        _all(_transaction),
        short_peers=("pgqueuer", "procrastinate"),
    ),
    Scenario(
        "enqueue-bulk",
        "Enqueue many at once",
        "The call that a library has for many jobs. The bare one is COPY with rows made in Python.",
        "jobs_per_second",
        {"jobs": 10_000},
        {"jobs": MOST},
        _all(_bulk),
        short_peers=("pgqueuer", "procrastinate"),
    ),
)
