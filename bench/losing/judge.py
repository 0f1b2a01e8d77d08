"""Owns the verdict: which jobs are lost, stuck or doubled, from the ledger that the jobs themselves have written.

It must not know any contender, nor ask one what it thinks has happened. The only thing taken from outside the ledger is which jobs the
contender's storage still holds: it tells a job that may yet run (stuck) from one of which nothing is left (lost).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bench.losses_peers.shared.notes import END, Note

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

IN_FLIGHT = 3  # of the last ends of each slot before a kill: their outcome may have been on its way
NEWS = 1.0  # seconds before a kill from which on an end may not have been heard of: it takes milliseconds, on a busy machine more


class Kill(NamedTuple):
    """When the worker and its children were killed, and when all of them were gone."""

    at: float
    gone: float


class Run(NamedTuple):
    """One run of a job; `ended` is None when its end is not in the ledger."""

    number: int
    began: float
    ended: float | None

    def was_cut(self, kill: Kill | None) -> bool:
        """Whether the kill ended it."""
        return kill is not None and self.ended is None and self.began <= kill.gone


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the jobs.

    Attributes:
        jobs: how many there were.
        runs: how often they were begun in all.
        lost: never ended, and nothing is left that could run: not in the storage, not running.
        stuck: not ended by the end of the watch, and still in the storage or running.
        doubled: begun again although an earlier run had ended, or was still going on with nobody killed.
        in_flight: those of the doubled that had ended just before the kill, so that the news of it may have died with the worker.
    """

    jobs: int
    runs: int
    lost: tuple[int, ...]
    stuck: tuple[int, ...]
    doubled: tuple[int, ...]
    in_flight: tuple[int, ...]

    @property
    def doubled_healthy(self) -> tuple[int, ...]:
        """Doubled with no crash to blame."""
        return tuple(number for number in self.doubled if number not in self.in_flight)


def runs(notes: Iterable[Note]) -> dict[int, list[Run]]:
    """The runs of each job, by when they began."""
    begun: dict[str, Note] = {}
    ended: dict[str, float] = {}
    for note in notes:
        if note.event == END:
            ended[note.run] = note.at
        else:
            begun[note.run] = note
    found: dict[int, list[Run]] = defaultdict(list)
    for run, note in sorted(begun.items(), key=lambda item: item[1].at):
        found[note.number].append(Run(note.number, note.at, ended.get(run)))
    return found


def judge(notes: Sequence[Note], numbers: Collection[int], held: Collection[int], kill: Kill | None = None, slots: int = 1) -> Verdict:
    """The verdict on these jobs.

    Args:
        notes: of the ledger, in any order.
        numbers: of the jobs that were acknowledged; others in the ledger do not count.
        held: numbers of jobs that the contender's storage still has at the end of the watch.
        kill: when there was one.
        slots: jobs at once.
    """
    found = {number: runs_ for number, runs_ in runs(notes).items() if number in numbers}
    finished = {number for number, runs_ in found.items() if any(run.ended is not None for run in runs_)}
    running = {number for number, runs_ in found.items() if any(run.ended is None and not run.was_cut(kill) for run in runs_)}
    missing = set(numbers) - finished
    lost = missing - set(held) - running
    doubled = {number for number, runs_ in found.items() if _is_doubled(runs_, kill)}
    late = _ended_late(found, kill, slots)
    return Verdict(
        len(numbers),
        sum(map(len, found.values())),
        tuple(sorted(lost)),
        tuple(sorted(missing - lost)),
        tuple(sorted(doubled)),
        tuple(sorted(number for number in doubled & late if _the_kill_explains(found[number], kill))),
    )


def _is_doubled(runs_: Sequence[Run], kill: Kill | None) -> bool:
    """Whether one of the runs began although those before it were not all cut by the kill."""
    return any(not earlier.was_cut(kill) for earlier in runs_[:-1])


def _the_kill_explains(runs_: Sequence[Run], kill: Kill | None) -> bool:
    """Whether the job was doubled by going on after the kill only: neither those before it nor those after it suffice."""
    if kill is None:
        return False
    before = [run for run in runs_ if run.began <= kill.gone]
    after = [run for run in runs_ if run.began > kill.gone]
    return not _is_doubled(before, kill) and not _is_doubled(after, kill)


def _ended_late(found: dict[int, list[Run]], kill: Kill | None, slots: int) -> set[int]:
    """The jobs that were the last to end before everybody was gone, and ended so late that nobody may have heard of it."""
    if kill is None:
        return set()
    ended = ((run.ended, run.number) for runs_ in found.values() for run in runs_ if run.ended is not None)
    ends = sorted((at, number) for at, number in ended if kill.at - NEWS <= at <= kill.gone)
    return {number for _, number in ends[-IN_FLIGHT * slots :]}


def lateness(notes: Iterable[Note], due: dict[int, float]) -> list[float]:
    """Seconds from when each job was due until it first began; negative when it began early. Those that never began are left out."""
    return [runs_[0].began - due[number] for number, runs_ in runs(notes).items() if number in due]


def are_over(notes: Sequence[Note], numbers: Collection[int], kill: Kill | None) -> bool:
    """Whether every job has ended and none runs."""
    found = runs(notes)
    return all(number in found and any(run.ended is not None for run in found[number]) for number in numbers) and not any(
        run.ended is None and not run.was_cut(kill) for runs_ in found.values() for run in runs_
    )
