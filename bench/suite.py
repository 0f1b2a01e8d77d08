"""Owns how a scenario is run: its entries prepared and warmed up one after the other, then measured in interleaved rounds, then written.

It must not know what a scenario measures. An entry that cannot be measured here is absent with its reason; one that breaks is failed
with what it said; neither stops the others.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import accounts, machine
from bench.contenders import Broken, Contender
from bench.environments import Absent, Peer
from bench.figures import Document, median
from bench.pace import pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bench.servers import Servers

Sizes = dict[str, float]
Measured = tuple["Mapping[str, float]", str]
"""Figures of one round, and the setting in words."""
FORMAT = 1  # of the JSON documents
QUIET_LOOK = 1.0  # seconds over which others' use of the machine is looked at, before and after a scenario
REDIS_DATABASES = 16
FLUSHED = "alike: Redis flushes its log before it answers (appendfsync always)"


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender in a scenario.

    Attributes:
        name: as in the tables.
        peer: the contender's name.
        rank: entries of one rank are compared (`default`, `best`); empty where there is nothing to compare with.
        prepare: sizes and warms up; what it returns measures one round.
        database: to be told apart where one contender needs several at once.
        flushed: whether Redis writes its log to the disk before it answers, as PostgreSQL does.
    """

    name: str
    peer: str
    prepare: Callable[[Contender, Sizes], Callable[[], Measured]]
    rank: str = ""
    database: str = ""
    flushed: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured.

    Attributes:
        figure: the one that the table is sorted by.
        short, full: sizes; `seconds` is what a measurement should last.
        short_peers: who takes part in the short suite; None for all. In the full one all do.
    """

    name: str
    title: str
    about: str
    figure: str
    short: Sizes
    full: Sizes
    entries: Callable[[Sequence[Peer], Sizes], list[Entry]]
    short_peers: tuple[str, ...] | None = None


@dataclass
class Plan:
    """How a run is to be done.

    Attributes:
        overridden: sizes given by hand, by name or, for one scenario only, as `scenario.name`.
        doubts: why its figures are not for publication, known before it begins.
        named: whether peers were asked for by name; they take part everywhere.
    """

    rounds: int
    suite: str
    overridden: Sizes = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    named: bool = False

    def sizes(self, scenario: Scenario) -> Sizes:
        """Of a scenario in this run."""
        sizes = scenario.full if self.suite == "full" else scenario.short
        return {name: self.overridden.get(name, self.overridden.get(f"{scenario.name}.{name}", value)) for name, value in sizes.items()}


class Cast:
    """The contenders of one scenario, started when first asked for."""

    def __init__(self, peers: Mapping[str, Peer], servers: Servers) -> None:
        self.peers = peers
        self.servers = servers
        self.started: dict[tuple[str, str], Contender] = {}

    def get(self, entry: Entry) -> Contender:
        """Raises Absent or Broken, each time anew."""
        key = (entry.peer, entry.database)
        if key not in self.started:
            peer = self.peers[entry.peer]
            database = "_".join(part for part in ("bench", *key) if part)
            self.started[key] = Contender(peer, self.servers, database, len(self.started) % REDIS_DATABASES)
        return self.started[key]

    def close(self) -> None:
        """End their processes."""
        for contender in self.started.values():
            contender.close()


def taking_part(scenario: Scenario, peers: Mapping[str, Peer], plan: Plan) -> dict[str, Peer]:
    """The contenders of a scenario in this run."""
    everybody = plan.suite == "full" or plan.named or scenario.short_peers is None
    return {name: peer for name, peer in peers.items() if everybody or peer.kind != "peer" or name in (scenario.short_peers or ())}


def run(scenario: Scenario, peers: Mapping[str, Peer], servers: Servers, plan: Plan) -> Document:
    """Measure a scenario. Returns its document."""
    sizes = plan.sizes(scenario)
    began, started = time.monotonic(), machine.now()
    ours = [pid for kind in ("postgresql", "redis") for pid in servers.pids(kind)]
    busy = accounts.others_share(QUIET_LOOK, ours)
    cast = Cast(taking_part(scenario, peers, plan), servers)
    try:
        entries, versions = _measure(scenario, cast, sizes, plan)
    finally:
        cast.close()
    busy = max(busy, accounts.others_share(QUIET_LOOK, ours))
    doubts = list(plan.doubts)
    if busy > machine.QUIET_SHARE:
        doubts.append(f"other processes used {busy:.0%} of the machine (at most {machine.QUIET_SHARE:.0%})")
    return {
        "format": FORMAT,
        "scenario": scenario.name,
        "suite": plan.suite,
        "measured_at": started,
        "took_seconds": round(time.monotonic() - began),
        "publishable": not doubts,
        "doubts": doubts,
        "rounds": plan.rounds,
        "sizes": sizes,
        "machine": machine.facts(),
        "others_share": round(busy, 4),
        "servers": servers.facts(),
        "versions": versions,
        "entries": entries,
    }


def _measure(scenario: Scenario, cast: Cast, sizes: Sizes, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    measures: dict[str, Callable[[], Measured]] = {}
    for entry in scenario.entries(list(cast.peers.values()), sizes):
        peer = cast.peers[entry.peer]
        durability = FLUSHED if entry.flushed else peer.durability
        result: dict[str, Any] = {"contender": entry.peer, "kind": peer.kind, "rank": entry.rank, "durability": durability}
        results[entry.name] = result | {"described": "", "figures": {}}
        _guarded(
            results[entry.name],
            f"{scenario.name}: {entry.name}",
            lambda entry=entry: measures.update({entry.name: _prepared(entry, cast, sizes)}),
        )  # type: ignore[misc]
    readings: list[float] = []  # of the machine's pace: the one after a measurement is that before the next
    for number in range(plan.rounds):
        # every second round backwards: who is always after the same neighbour would always get what that left behind
        for name in list(measures) if number % 2 == 0 else list(measures)[::-1]:
            work = partial(_keep, results[name], measures[name], readings)
            if not _guarded(results[name], f"{scenario.name}: {name}", work):
                del measures[name]
                readings.clear()  # nobody knows for how long it went on
                continue
            figures = results[name]["figures"]
            shown = ", ".join(f"{figure} {rounds[-1]:,.4g}" for figure, rounds in figures.items())
            pace_then = results[name]["pace"][-1]
            print(f"{scenario.name}, round {number + 1}: {name}: {shown}; pace {pace_then:.2f}", file=sys.stderr, flush=True)
    return results, {contender.peer.name: contender.versions for contender in cast.started.values()}


def _prepared(entry: Entry, cast: Cast, sizes: Sizes) -> Callable[[], Measured]:
    contender = cast.get(entry)

    def as_durable() -> None:
        if contender.peer.server == "redis":
            cast.servers.flush_redis(each=entry.flushed)

    as_durable()
    prepared = entry.prepare(contender, sizes)

    def measure() -> Measured:
        as_durable()
        return prepared()

    return measure


def _keep(result: dict[str, Any], measure: Callable[[], Measured], readings: list[float]) -> None:
    if not readings:
        readings.append(pace())
    figures, result["described"] = measure()
    readings.append(pace())
    result.setdefault("pace", []).append(sum(readings[-2:]) / 2)
    for figure, value in figures.items():
        result["figures"].setdefault(figure, []).append(value)


def _guarded(result: dict[str, Any], what: str, work: Callable[[], object]) -> bool:
    """Do it; note why it could not be done. Returns whether it was."""
    try:
        work()
    except Absent as reason:
        result["absent"] = str(reason)
        print(f"{what}: absent: {reason}", file=sys.stderr, flush=True)
    except Broken as error:
        result["failed"] = str(error)
        print(f"{what}: FAILED: {error}", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001  hours of other figures must not be lost; the run ends with 1
        result["failed"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        print(f"{what}: FAILED in the bench itself", file=sys.stderr, flush=True)
    else:
        return True
    return False


def write(document: Document, directory: Path) -> Path:
    """As JSON, one file a scenario; figures keep six digits."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{document['scenario']}.json"
    file.write_text(json.dumps(_rounded(document), indent=1, ensure_ascii=False) + "\n")
    return file


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def summary(document: Document, figure: str) -> str:
    """A few lines for the screen."""
    lines = []
    for name, entry in document["entries"].items():
        rounds = entry["figures"].get(figure)
        told = f"{median(rounds):,.4g}" if rounds else entry.get("absent") or "failed"
        lines.append(f"  {name:<34} {told.splitlines()[0]}")
    return "\n".join([f"{document['scenario']} ({figure}), {document['took_seconds']} s", *lines])


def read(directory: Path) -> dict[str, Document]:
    """The documents of a directory by scenario.

    Raises:
        ValueError: a file is no such document, or of another format; the message names it.
    """
    documents: dict[str, Document] = {}
    for file in sorted(directory.glob("*.json")):
        try:
            document = json.loads(file.read_text())
            known = document["format"] == FORMAT and document["scenario"] == file.stem
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a result of this bench ({type(error).__name__}: {error}); measure it again") from None
        if not known:
            raise ValueError(f"{file}: format {document['format']} of {document['scenario']!r}, expected {FORMAT}; measure it again")
        documents[file.stem] = document
    return documents
