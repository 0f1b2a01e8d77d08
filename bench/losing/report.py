"""Owns what is said of a measurement: the table, what stands under it, and whether our own rows are as they must be.

It must not measure. A document is what `bench/losses.py --json` writes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Document = dict[str, Any]

FORMAT = 1
HEADS = (
    "contender",
    "kill -9: lost",
    "stuck",
    "doubled",
    "longer than the timeout: doubled",
    "ETA beyond it: doubled",
    "begun late by",
    "rolled back: ran",
)
RECOVERED = 60.0  # seconds of watch after which a job of ours that has not ended is a fault: a lease, a poll, and as much again
UNKNOWN = "–"
GIB = 1 << 30


def read(file: Path) -> Document:
    """A document. Raises ValueError for what is none."""
    try:
        document = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: {error}; measure it again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{file}: not written by this version of bench/losses.py; measure it again")
    return document


def faults(document: Document) -> list[str]:
    """What must not be: in our rows anything lost, doubled with no crash to blame, stuck for good, or run after a rollback that it joins.

    In any row: what could not be measured although its contender is here.
    """
    found = []
    for entry in document["contenders"].values():
        for number, round_ in enumerate(entry["rounds"], 1):
            for scenario, figures in round_.items():
                where = f"{entry['title']}, {scenario}, round {number}"
                if "failed" in figures:
                    found.append(f"{where}: {figures['failed']}")
                elif entry["ours"] and "absent" not in figures:
                    bad = _bad(document, scenario, transactional=entry["transactional"])
                    found += [f"{where}: {figures[key]} {words}" for key, words in bad if figures.get(key)]
    return found


def _bad(document: Document, scenario: str, *, transactional: bool) -> Iterable[tuple[str, str]]:
    yield "lost", "lost"
    yield "doubled_healthy", "doubled with no crash to blame"
    if transactional:
        yield "ran_all_the_same", "of a rolled-back transaction ran"
    if scenario != "kill" or document["sizes"]["watch"] >= RECOVERED:
        yield "stuck", "stuck"


def table(document: Document) -> str:
    """The Markdown table."""
    lines = [HEADS, ["---"] * len(HEADS), *(_row(entry) for entry in document["contenders"].values())]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _row(entry: dict[str, Any]) -> list[str]:
    title = f"**{entry['title']}**" if entry["ours"] else entry["title"]
    if "absent" in entry:
        return [title, f"absent: {entry['absent']}", *[""] * (len(HEADS) - 2)]
    if started := [round_["start"] for round_ in entry["rounds"] if "start" in round_]:
        return [title, _reason(started) or "", *[""] * (len(HEADS) - 2)]
    named = ([round_[name] for round_ in entry["rounds"] if name in round_] for name in ("kill", "long", "later", "rollback"))
    kill, long, later, rollback = named
    return [
        title,
        *(_spread(kill, key) for key in ("lost", "stuck", "doubled")),
        _doubled(long),
        _doubled(later),
        _late(later),
        _of(rollback, "ran_all_the_same", "rolled_back"),
    ]


def _reason(rounds: Sequence[dict[str, Any]]) -> str | None:
    """Why there is no figure."""
    if not rounds:
        return UNKNOWN
    if failed := [figures["failed"] for figures in rounds if "failed" in figures]:
        return f"failed: {failed[0].splitlines()[0]}"
    absent = [figures["absent"] for figures in rounds if "absent" in figures]
    return absent[0] if absent else None


def _range(values: Sequence[float], unit: str = "") -> str:
    low, high = min(values), max(values)
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def _spread(rounds: Sequence[dict[str, Any]], key: str) -> str:
    return _reason(rounds) or _range([figures[key] for figures in rounds])


def _of(rounds: Sequence[dict[str, Any]], key: str, of: str) -> str:
    return _reason(rounds) or f"{_range([figures[key] for figures in rounds])} of {rounds[0][of]}"


def _doubled(rounds: Sequence[dict[str, Any]]) -> str:
    """How many were, and how often all of them ran together."""
    if reason := _reason(rounds):
        return reason
    said = _of(rounds, "doubled", "jobs")
    if any(figures["doubled"] for figures in rounds):
        said += f" ({_range([figures['runs'] for figures in rounds])} runs)"
    # what did not end although nobody was killed would be missed otherwise
    missing = [figures["lost"] + figures["stuck"] for figures in rounds]
    return said + (f", {_range(missing)} not ended" if any(missing) else "")


def _late(rounds: Sequence[dict[str, Any]]) -> str:
    if _reason(rounds):
        return UNKNOWN
    late = [moment for figures in rounds for moment in figures["late_s"] or ()]
    return _range([round(moment, 1) for moment in late], " s") if late else "never begun"


def notes(document: Document) -> str:
    """What a reader needs to judge the table: sizes, what each contender promises, versions, the machine."""
    sizes, machine, servers = document["sizes"], document["machine"], document["servers"]
    redis = f", Redis {servers['redis']['version']} (log flushed every second)" if servers["redis"] else ""
    cores = f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_bytes'] / GIB:.0f} GB"
    rounds = max((len(entry["rounds"]) for entry in document["contenders"].values()), default=0)
    lines = [
        (f"{rounds} {'round' if rounds == 1 else 'rounds'}; {sizes['jobs']} jobs of {sizes['seconds'] * 1000:g} ms,"
        f" watched for {sizes['watch']:g} s"
        f" after the restart; {sizes['few']} jobs in each of the other scenarios, with a timeout of {sizes['timeout']:g} s and"
        f" {sizes['beyond']:g} s beyond it. PostgreSQL {servers['postgresql']['version']} with `fsync` on{redis}; {cores},"
        f" {machine['kernel']},"
        f" Python {machine['python']}, revision {machine['revision'] or 'unknown'}, {document['measured_at']}."),
        "",
    ]
    for entry in document["contenders"].values():
        versions = ", ".join(f"{name} {version}" for name, version in entry.get("versions", {}).items() if name != "python")
        lines.append(f"- {entry['title']}: {entry['promise']}. {versions or 'absent'}{_fixed(entry)}.")
    return "\n".join(lines)


def _fixed(entry: dict[str, Any]) -> str:
    """Which timeout was used where it is not the one that was asked for."""
    fixed = entry.get("fixed_timeout")
    return f"; its timeout is {fixed:g} s and cannot be set, so its jobs were as much longer and later" if fixed else ""
