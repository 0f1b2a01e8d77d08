"""Owns turning the end of an attempt into its outcome: what its child has told, or what the death of its process means.

It must not end anything nor write it down; why an attempt was being ended comes from the enforcer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.jobs import Ending, Settled, Succeeded, Unsuccessful
from jobrunner.worker.wire import DONE, OK

if TYPE_CHECKING:
    from jobrunner.jobs import Ended
    from jobrunner.worker.children import Kill, Run

_NOTHING = (None,) * 6  # said of what went wrong: error type, message, traceback, fingerprint, cause, pause


def died(run: Run, kill: Kill | None, cause: str, now: float, *, cpu_ms: int | None = None, peak: int | None = None) -> Unsuccessful:
    """The outcome of a job whose process is dead: as `kill` says when we ended it, otherwise a crash."""
    job = run.job
    run_ms = max(0, round((now - run.since) * 1000)) if run.since else 0
    # The kernel tells of the dead process and of those it had waited for; what its other descendants used has only been seen.
    cpu_ms = max(cpu_ms or 0, run.cpu_seen) if cpu_ms is not None or run.cpu_seen else None
    spent: dict[str, Any] = {"run_ms": run_ms, "cpu_ms": cpu_ms, "ended_at": now, "peak_memory": max(run.peak, peak or 0) or None}
    if kill is not None:
        return Unsuccessful(kill.ending, job.id, job.lease, kill.error_type, kill.message, exit_cause=kill.exit_cause, **spent)
    message = f"the process running the job died ({cause})"
    return Unsuccessful(
        Ending.CRASH, job.id, job.lease, "jobrunner.errors.WorkerProcessDied", message, exit_cause=cause, **spent
    )


def reported(
    run: Run, ending: str, words: list[Any], spent: tuple[int, int | None, int | None], now: float, overrun: Kill | None
) -> Ended:
    """The outcome of an attempt that its child has told.

    Args:
        words: beside the ending: the result, or what went wrong and the pause asked for.
        spent: milliseconds of wall and of CPU time, and peak bytes.
        overrun: the limit that it was found to have exceeded when it had ended. What it returned does not count then, as it may not
            have been whole; but for a transactional task, whose effects are there.
    """
    job, (run_ms, cpu_ms, peak) = run.job, spent
    if ending == DONE:
        return Settled(job.id, job.lease)
    if ending == OK and overrun is None:
        return Succeeded(job.id, job.lease, words[0], run_ms, cpu_ms, now, peak)
    *facts, delay_ms = _NOTHING if ending == OK else words
    first = Ending.RETRY if ending == OK else Ending(ending)
    outcome = Unsuccessful._make((first, job.id, job.lease, *facts, run_ms, cpu_ms, now, delay_ms, peak))
    kill = run.kill or overrun
    if kill is None or outcome.ending is not Ending.RETRY:  # what it raised to steer its job stands
        return outcome
    # What a task raises while it is being ended says less than why.
    return outcome._replace(
        ending=kill.ending, error_type=kill.error_type, message=kill.message, fingerprint=None, exit_cause=kill.exit_cause
    )
