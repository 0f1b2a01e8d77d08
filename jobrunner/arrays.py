"""Owns turning batches into the array parameters of statements. It must not know which statement they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobrunner.jobs import LogLine, Note, Succeeded, Unsuccessful


def ints(values: Iterable[int | None]) -> str:
    """An array literal: several times cheaper than psycopg's list adaptation, which looks at every element's type."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def texts(values: list[str | None]) -> str | list[str | None]:
    """An array of texts; as a literal when all of them are NULL, which most are."""
    return values if any(value is not None for value in values) else "{" + ",".join(["NULL"] * len(values)) + "}"


def successes(group: Sequence[Succeeded], now: float) -> dict[str, Any]:
    """The parameters of `succeed`."""
    return {
        "ids": ints(outcome.id for outcome in group),
        "leases": ints(outcome.lease for outcome in group),
        "results": texts([outcome.result for outcome in group]),
        "run_ms": ints(outcome.run_ms for outcome in group),
        "cpu_ms": ints(outcome.cpu_ms for outcome in group),
        "peak_memory": ints(outcome.peak_memory for outcome in group),
        "age_ms": ints(max(0, int((now - outcome.ended_at) * 1000)) for outcome in group),
    }


def endings(group: Sequence[Unsuccessful], now: float) -> dict[str, Any]:
    """The parameters of every other end of an attempt."""
    return {
        "ids": ints(outcome.id for outcome in group),
        "leases": ints(outcome.lease for outcome in group),
        "error_types": texts([outcome.error_type for outcome in group]),
        "messages": texts([outcome.message for outcome in group]),
        "tracebacks": texts([outcome.traceback for outcome in group]),
        "fingerprints": texts([outcome.fingerprint for outcome in group]),
        "exit_causes": texts([outcome.exit_cause for outcome in group]),
        "run_ms": ints(outcome.run_ms for outcome in group),
        "cpu_ms": ints(outcome.cpu_ms for outcome in group),
        "peak_memory": ints(outcome.peak_memory for outcome in group),
        "age_ms": ints(max(0, int((now - outcome.ended_at) * 1000)) if outcome.ended_at else 0 for outcome in group),
        "delay_ms": ints(outcome.delay_ms for outcome in group),
    }


def notes(group: Sequence[Note]) -> dict[str, Any]:
    """The parameters of `progress`."""
    return {
        "ids": ints(note.id for note in group),
        "leases": ints(note.lease for note in group),
        "fractions": [note.fraction for note in group],
        "texts": texts([note.text for note in group]),
        "checkpoints": texts([note.checkpoint for note in group]),
    }


def log_lines(group: Sequence[LogLine], now: float) -> dict[str, Any]:
    """The parameters of `log`."""
    return {
        "ids": ints(line.id for line in group),
        "leases": ints(line.lease for line in group),
        "lines": ints(line.line for line in group),
        "levels": ints(line.level for line in group),
        "loggers": [line.logger for line in group],
        "messages": [line.message for line in group],
        "age_ms": ints(max(0, int((now - line.logged_at) * 1000)) for line in group),
    }
