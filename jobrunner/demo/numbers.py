"""Owns the questions that the demonstration asks the database, about its own jobs only.

It must not write, nor count a job of anybody else: every question names the run's own queue and the range of its ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Ask = Callable[[str, Mapping[str, Any]], Sequence[Any]]

SHOWN_FINDINGS = 5
FINISHED = ("succeeded", "failed", "quarantined", "cancelled")

_STATES = "SELECT state, count(*) FROM jobrunner.v_jobs WHERE id BETWEEN %(first)s AND %(last)s AND queue = %(queue)s GROUP BY state"
_SECONDS = """
    SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8 FROM jobrunner.v_jobs
    WHERE id BETWEEN %(first)s AND %(last)s AND queue = %(queue)s
"""
_AGAIN = """
    SELECT count(DISTINCT job_id) FILTER (WHERE outcome = 'retried'),
           count(DISTINCT job_id) FILTER (WHERE outcome = 'released' OR exit_cause = 'lost worker')
    FROM jobrunner.v_attempts WHERE job_id BETWEEN %(first)s AND %(last)s AND queue = %(queue)s
"""
_REASONS = """
    SELECT state, error_type, count(*), min(args->>'path') FROM jobrunner.v_jobs
    WHERE id BETWEEN %(first)s AND %(last)s AND queue = %(queue)s AND state IN ('failed', 'quarantined')
    GROUP BY state, error_type ORDER BY count(*) DESC, state, error_type
"""
_ENDINGS = "SELECT id, state, error_type FROM jobrunner.v_jobs WHERE id = ANY (%(ids)s) AND queue = %(queue)s"
_HAS_FAILED = "SELECT 1 FROM jobrunner.job_attempts WHERE job_id = %(id)s AND outcome = 'retried' LIMIT 1"
_WORKER = "SELECT id FROM jobrunner.v_workers WHERE name = %(name)s AND pid = %(pid)s AND state = 'alive'"

_FINDINGS = (
    "select (result->'worst'->>'complexity')::int as complexity, result->'worst'->>'name' as function,"
    " (result->'worst'->>'line')::int as line, args->>'path' as file"
    " from jobrunner.v_jobs where queue = '{queue}' and state = 'succeeded' order by 1 desc nulls last, 4 limit {limit}"
)


@dataclass(frozen=True, slots=True)
class Own:
    """The jobs of one run.

    Attributes:
        queue: made for this run; nobody else's.
        ids: of its jobs.
    """

    queue: str
    ids: Sequence[int]

    @property
    def parameters(self) -> dict[str, Any]:
        """What every question is limited to."""
        return {"queue": self.queue, "first": min(self.ids), "last": max(self.ids)}


@dataclass(frozen=True, slots=True)
class Summary:
    """How it went.

    Attributes:
        jobs: written.
        succeeded, failed, quarantined: ended so.
        retried: had an attempt that ended in an error and was followed by another.
        returned: were taken back from a worker that died or stopped, and ran again.
        seconds: from the transaction that wrote the jobs to the end of the last one, by the clock of the database.
    """

    jobs: int
    succeeded: int
    failed: int
    quarantined: int
    retried: int
    returned: int
    seconds: float

    @property
    def jobs_per_second(self) -> float:
        """Ended jobs over seconds."""
        return (self.succeeded + self.failed + self.quarantined) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Reason:
    """Why jobs did not succeed: the error they ended with, how many, and the input of one of them."""

    state: str
    error_type: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One of the most complex functions of all."""

    complexity: int
    function: str
    line: int
    file: str


def findings_query(own: Own) -> str:
    """The question after the most complex functions, as one pastes it into psql: one line, no double quote, no dollar."""
    return _FINDINGS.format(queue=own.queue, limit=SHOWN_FINDINGS)


def count_states(ask: Ask, own: Own) -> dict[str, int]:
    """How many of the jobs are in each state."""
    return dict(ask(_STATES, own.parameters))


def summarise(ask: Ask, own: Own) -> Summary:
    """Everything in figures."""
    states = count_states(ask, own)
    retried, returned = ask(_AGAIN, own.parameters)[0]
    seconds = ask(_SECONDS, own.parameters)[0][0] or 0.0
    succeeded, failed, quarantined = (states.get(state, 0) for state in ("succeeded", "failed", "quarantined"))
    return Summary(len(own.ids), succeeded, failed, quarantined, retried, returned, seconds)


def find_reasons(ask: Ask, own: Own) -> list[Reason]:
    """Why jobs did not succeed, the commonest first."""
    return [Reason(*row) for row in ask(_REASONS, own.parameters)]


def find_most_complex(ask: Ask, own: Own) -> list[Finding]:
    """The answer to `findings_query`: the very same text is sent."""
    return [Finding(*row) for row in ask(findings_query(own), {}) if row[0] is not None]


def endings(ask: Ask, own: Own, ids: Sequence[int]) -> dict[int, tuple[str, str | None]]:
    """State and last error of some of the jobs."""
    return {row[0]: (row[1], row[2]) for row in ask(_ENDINGS, {"ids": list(ids), "queue": own.queue})}


def has_failed_once(ask: Ask, job_id: int) -> bool:
    """Whether an attempt of the job has ended in an error already."""
    return bool(ask(_HAS_FAILED, {"id": job_id}))


def is_registered(ask: Ask, name: str, pid: int) -> bool:
    """Whether the worker has made itself known: then it is about to take jobs."""
    return bool(ask(_WORKER, {"name": name, "pid": pid}))
