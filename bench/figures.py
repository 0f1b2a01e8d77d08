"""Owns the arithmetic of the benchmarks: medians, spread, ratios, and whether a target is met.

It must not measure anything nor read a file; it is what the published page and the summary on the screen are computed with.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIN_ROUNDS = 3  # fewer have no median worth the name

Document = dict[str, Any]
"""One scenario's results, as in its JSON file."""


def median(rounds: Sequence[float]) -> float:
    """The middle value. Raises ValueError when there is none."""
    if not rounds:
        raise ValueError("no rounds: nothing was measured")
    return statistics.median(rounds)


def spread(rounds: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value."""
    if not rounds:
        raise ValueError("no rounds: nothing was measured")
    return min(rounds), max(rounds)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed (nearest rank).

    Args:
        share: above 0 and at most 1.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def rounds_of(document: Document | None, entry: str, figure: str) -> list[float]:
    """What was measured, one number a round; empty when the entry was absent, failed, or has no such figure."""
    found = ((document or {}).get("entries") or {}).get(entry) or {}
    return [] if found.get("failed") else list((found.get("figures") or {}).get(figure) or [])


@dataclass(frozen=True, slots=True)
class Reading:
    """Which number: an entry's figure in a scenario."""

    scenario: str
    entry: str
    figure: str

    def value(self, documents: Mapping[str, Document]) -> float | None:
        """Its median; None when it was not measured."""
        rounds = rounds_of(documents.get(self.scenario), self.entry, self.figure)
        return median(rounds) if rounds else None


@dataclass(frozen=True, slots=True)
class Best:
    """The largest median of a figure among the entries of a kind (`peer`, `ours`, `bare`) and, where one is given, of a rank."""

    scenario: str
    figure: str
    kind: str = "peer"
    rank: str = ""

    def winner(self, documents: Mapping[str, Document]) -> str | None:
        """The entry that has it; None when nobody was measured."""
        document = documents.get(self.scenario) or {}
        medians = {
            name: median(rounds)
            for name, entry in (document.get("entries") or {}).items()
            if entry.get("kind") == self.kind
            and self.rank in {"", entry.get("rank")}
            and (rounds := rounds_of(document, name, self.figure))
        }
        return max(medians, key=medians.__getitem__) if medians else None

    def value(self, documents: Mapping[str, Document]) -> float | None:
        """Its median."""
        name = self.winner(documents)
        return None if name is None else median(rounds_of(documents[self.scenario], name, self.figure))


class Verdict(StrEnum):
    """What can be said of a target."""

    MET = "met"
    NOT_MET = "not met"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Bound:
    """One demand on one number: `ours` against `limit`, or against `limit` times what `against` has in the same run.

    Args:
        sense: whether `ours` has to be at least or at most that.
    """

    ours: Reading
    sense: Literal["≥", "≤"]
    limit: float
    unit: str = ""
    against: Reading | Best | None = None

    def reached(self, documents: Mapping[str, Document]) -> float | None:
        """Ours, or its ratio to the alternative; None when one of them was not measured or the alternative is 0."""
        ours = self.ours.value(documents)
        if self.against is None or ours is None:
            return ours
        other = self.against.value(documents)
        return ours / other if other else None

    def verdict(self, documents: Mapping[str, Document]) -> Verdict:
        """Whether the demand is met; equal is met."""
        reached = self.reached(documents)
        if reached is None:
            return Verdict.NOT_MEASURED
        met = reached >= self.limit if self.sense == "≥" else reached <= self.limit
        return Verdict.MET if met else Verdict.NOT_MET


@dataclass(frozen=True, slots=True)
class Target:
    """A line of the list of targets: met when all of its bounds are."""

    number: int
    words: str
    bounds: tuple[Bound, ...]

    def verdict(self, documents: Mapping[str, Document]) -> Verdict:
        """Not met when one bound is not; not measured when one was not and none failed."""
        verdicts = {bound.verdict(documents) for bound in self.bounds}
        for worst in (Verdict.NOT_MET, Verdict.NOT_MEASURED):
            if worst in verdicts:
                return worst
        return Verdict.MET


def losses(document: Document, figure: str, *, higher_is_better: bool) -> list[tuple[str, str, float]]:
    """Where peers are ahead: our entry, the peer's entry, and how many times better that is; for each of ours the furthest ahead first.

    Entries are compared within their `rank` (such as "default" or "best"): ours at its defaults with the peers at theirs.
    """
    found: list[tuple[str, str, float]] = []
    entries = document.get("entries") or {}
    for name, entry in entries.items():
        ours = rounds_of(document, name, figure)
        if entry.get("kind") != "ours" or not entry.get("rank") or not ours:
            continue
        ahead: list[tuple[float, str]] = []
        for other, rival in entries.items():
            theirs = rounds_of(document, other, figure)
            if rival.get("kind") == "peer" and rival.get("rank") == entry["rank"] and theirs:
                mine, its = median(ours), median(theirs)
                worse, better = (mine, its) if higher_is_better else (its, mine)
                if better > worse > 0:
                    ahead.append((better / worse, other))
        found += [(name, other, times) for times, other in sorted(ahead, reverse=True)]
    return found
