"""Owns the scenarios of a queue that is worked off: no-op jobs, and jobs that wait or compute with more slots than cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.draining import drain, size_for
from bench.suite import Entry, Measured, Scenario, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.contenders import Contender
    from bench.environments import Peer

MOST = 200_000  # jobs of one measurement
BARE_CLIENTS = {"1 client": "one", "2 clients": "best"}
MILLISECONDS = (1, 10, 100)
PROCESS_SLOTS, SLOTS = 20, 100  # more than cores
CPU_SLOTS = 4
RATE = ("jobs_per_second",)
AS_DURABLE = {"celery": "late", "dramatiq": "best"}
"""The settings of peers on Redis that take a message off only when its task has run."""


def noop(setting: str) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    """Entries of the drain of no-op jobs."""

    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        count = size_for(sizes["seconds"], MOST, lambda count: drain(contender, setting, count)[0].seconds)

        def measure() -> Measured:
            drained, described = drain(contender, setting, count)
            return drained.figures(postgresql=contender.peer.server == "postgresql"), described

        return measure

    return prepare


def lasting(setting: str, task: str, argument: float, slots: int) -> Callable[[Contender, Sizes], Callable[[], Measured]]:
    """Entries of jobs that take a while."""

    def prepare(contender: Contender, sizes: Sizes) -> Callable[[], Measured]:
        def once(count: int) -> tuple[float, str]:
            drained, described = drain(contender, setting, count, task=task, argument=argument, slots=slots)
            return drained.seconds, described

        count = size_for(sizes["seconds"], MOST, lambda count: once(count)[0])

        def measure() -> Measured:
            seconds, described = once(count)
            return {"jobs_per_second": count / seconds}, described

        return measure

    return prepare


def _noop_entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:  # noqa: ARG001  the same ones in both suites
    entries = []
    for peer in peers:
        if peer.name == "bare":
            entries += [Entry(f"bare, {clients}", "bare", noop(setting)) for clients, setting in BARE_CLIENTS.items()]
        elif peer.name != "pgbench":
            entries += [Entry(f"{peer.name}, {setting}", peer.name, noop(setting), rank=setting) for setting in ("default", "best")]
        if peer.name in AS_DURABLE:
            entries.append(Entry(f"{peer.name}, flushed", peer.name, noop(AS_DURABLE[peer.name]), rank="best", flushed=True))
    return entries


def _lasting_entries(task: str) -> Callable[[Sequence[Peer], Sizes], list[Entry]]:
    def entries(peers: Sequence[Peer], sizes: Sizes) -> list[Entry]:
        found = []
        for ms in MILLISECONDS if sizes["all_durations"] else MILLISECONDS[-1:] if task == "nap" else MILLISECONDS[:1]:
            argument = ms / 1000 if task == "nap" else ms
            slots, processes = (SLOTS, PROCESS_SLOTS) if task == "nap" else (CPU_SLOTS, CPU_SLOTS)
            for peer in peers:
                if peer.kind == "bare":
                    continue
                ours = {"processes": ("many", task, processes), "threads": ("threads", task, slots)}
                if task == "nap":
                    ours["async"] = ("async", "async_nap", slots)
                ways = ours if peer.kind == "ours" else {"": ("many" if task == "nap" else "processes", task, slots)}
                for way, (setting, name, count) in ways.items():
                    label = f"{peer.name}, {way}" if way else peer.name
                    prepare = lasting(setting, name, argument, count)
                    found.append(Entry(f"{label}, {ms} ms", peer.name, prepare, rank=f"{ms} ms"))
        return found

    return entries


SCENARIOS = (
    Scenario(
        "drain",
        "Drain of no-op jobs",
        "The queue is filled, then workers start; from the first job's start until the queue says that nothing is left. CPU is that of the "
        "workers and of the server. WAL includes that of enqueuing, by whatever call fills fastest. The bare loop claims and finishes with "
        "our statements in batches of 100, with no worker around it. Tasks do nothing but count. Of several processes the first runs alone "
        "until the others have started, which costs the short suite more than the full one. `flushed` is as durable as PostgreSQL: Redis "
        "has each write on the disk before it answers, and a message goes when its task has run.",
        "jobs_per_second",
        {"seconds": 1.0},
        {"seconds": 8},
        _noop_entries,
        short_peers=("celery", "pgqueuer"),
    ),
    Scenario(
        "waiting-jobs",
        "Jobs that wait",
        f"Jobs that sleep, {SLOTS} at once in threads or coroutines, {PROCESS_SLOTS} at once in processes. The ceiling is arithmetic: "
        "slots divided by the duration.",
        "jobs_per_second",
        {"seconds": 1, "all_durations": 0},
        {"seconds": 3, "all_durations": 1},
        _lasting_entries("nap"),
        short_peers=("pgqueuer",),
    ),
    Scenario(
        "computing-jobs",
        "Jobs that compute",
        f"Jobs that use the CPU for so long, in {CPU_SLOTS} processes. Threads of one process share one interpreter; ours are "
        "beside them to show what that costs. The ceiling is arithmetic: cores divided by the duration.",
        "jobs_per_second",
        {"seconds": 1, "all_durations": 0},
        {"seconds": 3, "all_durations": 1},
        _lasting_entries("spin"),
        short_peers=("pgqueuer",),
    ),
)
