"""Owns the scenario of many worker processes on one queue: does the pace grow with them, and does it hold when they are too many?"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bench import accounts
from bench.contenders import Broken
from bench.draining import LOOK, await_begin, watch
from bench.environments import Absent
from bench.suite import Entry, Measured, Scenario, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.contenders import Contender, Workers
    from bench.environments import Peer

SETTING = "single"
READY_PATIENCE = 240.0  # seconds: 64 interpreters start on two cores
SETTLING = 1.0  # seconds between looks at what the workers use
SETTLED = 0.4  # of a core: 64 that wait use a quarter of that in all
WARM_UP = {"task": "nap", "argument": 0.05}  # seconds: nobody can take a second one before all others have had their first
WARM_UPS = 4  # for each worker
WAKE = {"task": "noop", "count": 1, "pause": 0}
WITH_PEERS = ("bare", "pgqueuer")
PEERS_AT_MOST = 8  # workers of a peer: 64 of PgQueuer take ten minutes of a run, and nobody promises anything for them


def _ready(contender: Contender, workers: Workers, count: int) -> None:
    """Wait until all serve, and have come to rest: who has registered may still be importing the application, and 64 do so for long."""
    end = time.monotonic() + READY_PATIENCE
    while (serving := contender.ask("serving")) < count:
        workers.check()
        if time.monotonic() > end:
            raise Broken(f"{contender.peer.title}: {serving} of {count} workers were ready within {READY_PATIENCE:.0f} s")
        time.sleep(LOOK * 10)
    used, before = SETTLED + 1, accounts.cpu_seconds(workers.pids)
    while used > SETTLED * SETTLING:
        if time.monotonic() > end:
            raise Broken(f"{contender.peer.title}: {count} workers did not come to rest within {READY_PATIENCE:.0f} s")
        time.sleep(SETTLING)
        used, before = (now := accounts.cpu_seconds(workers.pids)) - before, now


def _warm_up(contender: Contender, workers: Workers, count: int) -> int:
    """Have each worker run a few jobs that wait: first times load code, plans and catalogues. Returns how many jobs."""
    jobs = count * WARM_UPS
    contender.ask("fill", **WARM_UP, count=jobs)
    contender.ask("paced", **WAKE)
    watch(contender, workers, jobs + 1)
    return jobs + 1


def _workers(count: int) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        contender.ask("workers", setting=SETTING, slots=count)  # absent now rather than in every round
        jobs = round(sizes["jobs"])

        def measure() -> Measured:
            contender.clear()
            contender.servers.settle()
            with contender.workers(SETTING, count) as workers:
                _ready(contender, workers, count)
                warm = _warm_up(contender, workers, count)
                with ThreadPoolExecutor(1) as beside:
                    begin = beside.submit(await_begin, contender, workers, warm)
                    contender.ask("fill", task="noop", argument=0, count=jobs)
                    contender.ask("paced", **WAKE)
                    begun = begin.result()
                drained = watch(contender, workers, jobs + 1, begun=begun)
                figures = {
                    "jobs_per_second": drained.count / drained.seconds,
                    "cpu_ms_per_job": drained.cpu_seconds * 1000 / drained.count,
                    "connections_per_worker": drained.connections / count,
                    "memory_mb_per_worker": accounts.memory_bytes(workers.pids) / 1e6 / count,
                    "ran_twice": float(contender.counted().count - warm - drained.count),
                }
                with contextlib.suppress(Absent):
                    figures["claimed_twice"] = float(contender.ask("overclaimed"))
                return figures, workers.described

        return measure

    return prepare


def _entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:
    counts = [int(sizes[name]) for name in ("one", "few", "some", "more", "many") if sizes.get(name)]
    return [
        Entry(f"{peer.name} × {count}", peer.name, _workers(count), rank=f"× {count}")
        for peer in peers
        if peer.kind == "ours" or peer.name in WITH_PEERS
        for count in counts
        if peer.kind != "peer" or count <= PEERS_AT_MOST
    ]


SCENARIOS = (
    Scenario(
        "workers",
        "Many worker processes on one queue",
        "Workers of one child process each, all of them ready, and warmed up by jobs that wait, before the queue is filled: throughput, "
        "connections, and jobs that ran or were claimed more than once. The bare one is as many clients of the claim and finish loop. "
        "Of the peers the fastest takes part, with eight workers at most: 64 of them would take ten minutes a round.",
        "jobs_per_second",
        {"jobs": 10_000, "one": 1, "some": 4},
        {"jobs": 200_000, "one": 1, "few": 2, "some": 4, "more": 8, "many": 64},
        _entries,
        short_peers=(),
    ),
)
