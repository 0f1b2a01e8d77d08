"""Owns the scenario of a worker that has nothing to do: what it costs all the same."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from psycopg import sql

from bench import accounts
from bench.contenders import Broken
from bench.scenarios import latency
from bench.suite import Entry, Measured, Scenario, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.contenders import Contender, Workers
    from bench.environments import Peer

SETTLING = 2.0  # seconds after the last job until counting begins
READY_PATIENCE = 60.0  # seconds
LOOK = 0.05  # seconds
PERCENT = 100
TRACK = sql.SQL("ALTER DATABASE {} SET pg_stat_statements.track = 'top'")


def redis_commands(contender: Contender) -> float:
    """Commands that the bench's Redis has carried out so far."""
    told = contender.servers.redis_cli("info", "stats")
    return float(told.split("total_commands_processed:")[1].split()[0])


@contextlib.contextmanager
def idle(contender: Contender, setting: str) -> Iterator[Workers]:
    """Workers that were ready, and have run a few jobs where their application has the task for it."""
    if setting != "large":
        with latency.ready(contender, setting) as workers:
            yield workers
        return
    contender.clear()
    with contender.workers(setting) as workers:
        contender.ask("fill", task="noop", argument=0, count=latency.WARM_UP)
        end = time.monotonic() + READY_PATIENCE
        while contender.ask("left"):
            workers.check()
            if time.monotonic() > end:
                raise Broken(f"{contender.peer.title}: the large application ran nothing within {READY_PATIENCE:.0f} s")
            time.sleep(LOOK)
        yield workers


def _idle(setting: str) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        postgresql = contender.peer.server == "postgresql"
        if postgresql:
            contender.servers.admin.execute(TRACK.format(sql.Identifier(contender.database)))
            contender.ledger.statements = contender.servers.counts_statements

        def asked() -> float:
            return contender.ledger.queries() if postgresql else redis_commands(contender)

        def measure() -> Measured:
            with idle(contender, setting) as workers:
                time.sleep(SETTLING)
                roots = workers.pids
                began, queries = time.monotonic(), asked()
                cpu, server = accounts.cpu_seconds(roots), accounts.cpu_seconds(contender.pids())
                time.sleep(sizes["seconds"])
                mine = accounts.cpu_seconds(roots) - cpu
                servers = accounts.cpu_seconds(contender.pids()) - server
                queries, seconds = asked() - queries, time.monotonic() - began
                workers.check()
                figures = {
                    "cpu_percent": (mine + servers) / seconds * PERCENT,
                    "worker_cpu_percent": mine / seconds * PERCENT,
                    "queries_per_second": queries / seconds,
                    "memory_mb": accounts.memory_bytes(roots) / 1e6,
                }
                return figures | ({"connections": contender.ledger.connections()} if postgresql else {}), workers.described

        return measure

    return prepare


def _entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:
    entries = []
    for peer in peers:
        if peer.kind == "bare":
            continue
        entries.append(Entry(peer.name, peer.name, _idle("default"), rank="default"))
        if peer.kind == "ours" and sizes["large"]:
            entries.append(Entry(f"{peer.name}, large application", peer.name, _idle("large"), database="large"))
    return entries


SCENARIOS = (
    Scenario(
        "idle",
        "An idle worker",
        "A worker at its defaults that has run a few jobs and has none now: CPU of all its processes and of the server, statements a "
        "second (for Redis: commands), connections, and memory as proportional set size.",
        "cpu_percent",
        {"seconds": 5, "large": 0},
        {"seconds": 20, "large": 1},
        _entries,
        short_peers=("pgqueuer",),
    ),
)
