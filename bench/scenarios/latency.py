"""Owns the scenarios of waiting: from enqueue to the task's first line, idle and under load, and to the result."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from bench.contenders import Broken
from bench.figures import percentile
from bench.suite import Entry, Measured, Scenario, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.contenders import Contender, Workers
    from bench.environments import Peer

SHARES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
MS = 1000
WARM_UP = 5  # jobs before the first that counts
SETTLING = 0.5  # seconds
PATIENCE = 60.0  # seconds until a worker must have run what it was given
LOOK = 0.01  # seconds
ROUNDTRIP_PAUSE = 0.02  # seconds


@contextlib.contextmanager
def ready(contender: Contender, setting: str, slots: int = 0) -> Iterator[Workers]:
    """Workers that have run a few jobs, and are idle."""
    contender.clear()
    with contender.workers(setting, slots) as workers:
        before = contender.counted().count
        contender.ask("paced", task="stamp", count=WARM_UP, pause=SETTLING / WARM_UP)
        wait_for(contender, workers, before + WARM_UP)
        time.sleep(SETTLING)
        yield workers


def wait_for(contender: Contender, workers: Workers, count: int) -> None:
    """Until so many jobs have begun. Raises Broken after a minute."""
    end = time.monotonic() + PATIENCE
    while contender.counted().count < count:
        workers.check()
        if time.monotonic() > end:
            raise Broken(f"{contender.peer.title}: {contender.counted().count} of {count} jobs began within {PATIENCE:.0f} s")
        time.sleep(LOOK)


def figures(seconds: Sequence[float]) -> dict[str, float]:
    """The percentiles that are published."""
    return {name: percentile(seconds, share) * MS for name, share in SHARES.items()}


def pickup(setting: str, *, load: bool) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    """Entries of both pickup scenarios."""

    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        contender.ask("workers", setting=setting, slots=0)  # absent now rather than in every round
        count, pause = round(sizes["jobs"]), sizes["pause_ms"] / MS

        def measure() -> Measured:
            with ready(contender, setting) as workers, contextlib.ExitStack() as stack:
                began, skipped = contender.counted().count, contender.sizes()
                if load:
                    second = stack.enter_context(contender.second())
                    noops = round(count * pause * sizes["load_per_second"])
                    second.send("paced", task="noop", count=noops, pause=1 / sizes["load_per_second"])
                    began += noops
                contender.ask("paced", task="stamp", count=count, pause=pause)
                if load:
                    second.take("paced")
                wait_for(contender, workers, began + count)
                return figures(contender.stamped(skipped)), workers.described

        return measure

    return prepare


def roundtrip(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
    """Entries of the round trip."""
    count = round(sizes["jobs"])
    with ready(contender, "default"):
        contender.ask("roundtrip", count=1, pause=0)  # absent now rather than in every round

    def measure() -> Measured:
        with ready(contender, "default") as workers:
            contender.ask("roundtrip", count=WARM_UP, pause=ROUNDTRIP_PAUSE)
            return figures(contender.ask("roundtrip", count=count, pause=ROUNDTRIP_PAUSE)), workers.described

    return measure


def _pickup_entries(*, load: bool) -> Callable[[Sequence[Peer], Sizes], list[Entry]]:
    def entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:
        found = []
        for peer in peers:
            if peer.name == "pgbench":
                continue
            # one that forks for each job cannot carry the load at its defaults: there its best takes part
            setting = "best" if load and peer.name == "rq" else "default"
            found.append(Entry(peer.name, peer.name, pickup(setting, load=load), rank="default"))
            if peer.kind == "ours" and sizes.get("polling"):
                found.append(Entry(f"{peer.name}, polling only", peer.name, pickup("polling", load=load)))
        return found

    return entries


def _roundtrip_entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:  # noqa: ARG001
    entries = [Entry(peer.name, peer.name, roundtrip, rank="default") for peer in peers if peer.kind != "bare"]
    return [*entries, *(Entry("bare", "bare", roundtrip) for peer in peers if peer.name == "bare")]


SCENARIOS = (
    Scenario(
        "pickup-idle",
        "Pickup latency on an idle queue",
        "From the call of enqueue to the first line of the task; jobs at even intervals, workers at their defaults. The bare loop LISTENs, "
        "and is woken by a NOTIFY on a connection beside the one that inserts.",
        "p50_ms",
        {"jobs": 30, "pause_ms": 50, "polling": 0},
        {"jobs": 200, "pause_ms": 50, "polling": 1},
        _pickup_entries(load=False),
        short_peers=("pgqueuer",),
    ),
    Scenario(
        "pickup-load",
        "Pickup latency under load",
        "The same while another process enqueues no-op jobs into the same queue at a steady pace. RQ takes part with its SimpleWorker: at "
        "its defaults it cannot carry the load.",
        "p50_ms",
        {"jobs": 30, "pause_ms": 50, "load_per_second": 100},
        {"jobs": 200, "pause_ms": 50, "load_per_second": 100},
        _pickup_entries(load=True),
        short_peers=("pgqueuer",),
    ),
    Scenario(
        "roundtrip",
        "Round trip to the result",
        "From the call of enqueue until the caller has the result, jobs 20 ms apart, workers at their defaults. The bare one inserts, "
        "notifies and looks for the finished row by primary key every 2 ms, against the bare loop as worker.",
        "p50_ms",
        {"jobs": 30},
        {"jobs": 200},
        _roundtrip_entries,
        short_peers=("celery",),
    ),
)
