"""Owns every exception of Jobrunner: one tree, whose classes write their own sentences.

It must not import anything of ours, nor know about SQLAlchemy, psycopg or Flask: their errors pass through unchanged.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class JobrunnerError(Exception):
    """Base of every error Jobrunner raises on purpose.

    `hint` is one line that says what to do next; the CLI and the HTTP API print it below the message.
    """

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class ConfigurationError(JobrunnerError):
    """A setting is missing, malformed or contradicts another; the message names the setting and where it came from."""


class AppImportError(ConfigurationError):
    """The application given by `--app` (or found by default) could not be imported; `__cause__` has the original error."""


class DatabaseUnreachable(JobrunnerError):
    """PostgreSQL did not answer or refused the login; `origin` says where the DSN came from. Never holds a password."""

    def __init__(self, target: str, reason: str, *, origin: str, hint: str = "") -> None:
        super().__init__(f"cannot reach PostgreSQL at {target} ({reason})", hint=hint)
        self.target = target
        self.reason = reason
        self.origin = origin


class SchemaError(JobrunnerError):
    """The schema `jobrunner` in the database does not fit this program."""


class SchemaMissing(SchemaError):
    """The database has no Jobrunner schema."""

    hint = "run:   jobrunner db upgrade"

    def __init__(self, target: str) -> None:
        super().__init__(f'schema "jobrunner" does not exist in {target}')


class SchemaOutdated(SchemaError):
    """The schema is older than this program needs."""

    hint = "run:   jobrunner db upgrade"

    def __init__(self, current: str, needed: str, pending: int) -> None:
        super().__init__(f'schema "jobrunner" is at version {current}, this program needs {needed} ({pending} migrations to run)')
        self.current, self.needed, self.pending = current, needed, pending


class SchemaTooNew(SchemaError):
    """The schema was upgraded by a newer Jobrunner than this one."""

    hint = "run:   pip install --upgrade jobrunner-pg     (on this host; never downgrade the schema under running workers)"

    def __init__(self, current: str, known: str) -> None:
        super().__init__(f'schema "jobrunner" is at version {current}, newer than this program knows ({known})')
        self.current, self.known = current, known


class EnqueueError(JobrunnerError):
    """A job was refused before anything was written."""


class UnknownTask(EnqueueError):
    """No task of that name is registered; `matches` has the closest names."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        names = sorted(known)
        self.matches = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        guess = f" Did you mean {' or '.join(repr(match) for match in self.matches)}?" if self.matches else ""
        super().__init__(
            f"task {name!r} is not registered.{guess}",
            hint=f"registered: {', '.join(names) or 'no task at all: is the module with your @jobs.task functions imported by the app?'}",
        )


class InvalidPayload(EnqueueError):
    """An argument cannot be stored as JSON; `argument` is its path, such as `order.items[3]`, or `return value`."""

    def __init__(self, argument: str, problem: str, *, instead: str = "") -> None:
        subject = f"the {argument}" if argument.startswith("return value") else f"argument {argument!r}"
        super().__init__(f"{subject} {problem}" if argument else f"the arguments {problem}", hint=instead)
        self.argument, self.problem = argument, problem


class UnstorableResult(InvalidPayload):
    """What a task returned cannot be kept. Recorded as the error of a job that fails at once: its work is done, and would be again."""


class DuplicateJob(EnqueueError):
    """A job with the same unique key is queued or running; `job_id` is that job."""

    def __init__(self, job_id: int, unique_key: str) -> None:
        super().__init__(f"job {job_id} with unique key {unique_key!r} is already queued or running")
        self.job_id, self.unique_key = job_id, unique_key


class DuplicateReference(EnqueueError):
    """Another job has been given that reference; nothing was written. `space` and `key` are the reference."""

    hint = "take another key, find that job with References(jobs.database).find(space, key), or drop the reference first"

    def __init__(self, space: str, key: str) -> None:
        super().__init__(f"reference {key!r} of {space!r} is given to a job already")
        self.space, self.key = space, key


class JobNotFound(JobrunnerError):
    """No live or finished job has that id. `was_given`: the id has been given to a job, which may have been removed by retention."""

    def __init__(self, job_id: int, *, was_given: bool = False) -> None:
        if was_given:
            super().__init__(
                f"no job {job_id}: it may have been removed by retention",
                hint="how long finished jobs are kept: jobrunner retention     (or its enqueue was rolled back)",
            )
        else:
            super().__init__(f"no job {job_id}", hint="finished jobs are kept until retention drops them; list with: jobrunner jobs list")
        self.job_id = job_id


class GroupNotFound(JobrunnerError):
    """No group of that name is subscribed to the topic."""

    hint = "see:   jobrunner topics list"


class JobExpired(JobrunnerError):
    """Recorded as the error type of a job that was cancelled because nobody began it before its `expires_at`."""


class ResultExpired(JobNotFound):
    """The job existed, as this program saw itself, and its row is gone: retention dropped it, and its result with it."""

    hint = "ask for results soon after the job has finished, or keep history longer; what must last belongs in a table of your own"

    def __init__(self, job_id: int) -> None:
        JobrunnerError.__init__(self, f"the result of job {job_id} has expired: its row was there and was deleted since")
        self.job_id = job_id


class ArchiveError(JobrunnerError):
    """Old history was not removed because it could not be archived first; `partition` is where the rows are, `__cause__` why."""

    def __init__(self, partition: str, reason: str) -> None:
        super().__init__(
            f"could not archive rows of {partition} ({reason}): they stay where they are",
            hint="mend that and run:   jobrunner prune     (it goes on where it stopped)",
        )
        self.partition, self.reason = partition, reason


class IllegalTransition(JobrunnerError):
    """The job is in a state from which the asked transition does not exist."""

    def __init__(self, job_id: int, state: str, transition: str, *, hint: str = "") -> None:
        super().__init__(f"cannot {transition} job {job_id}: it is {state}", hint=hint)
        self.job_id, self.state, self.transition = job_id, state, transition


class LeaseLost(JobrunnerError):
    """A write of a superseded attempt was refused; the job belongs to another attempt or is finished."""

    hint = "another attempt has the job or message, or it has ended; if neither is so, the session is on another database than the jobs"

    def __init__(self, job_id: int, lease: int) -> None:
        super().__init__(f"attempt with lease {lease} of job {job_id} has been superseded; its write was refused")
        self.job_id, self.lease = job_id, lease


class RemoteTraceback(Exception):
    """Stands for the exception in the worker as a cause: its text is the traceback from there, `tb`, which an uncaught error prints."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tb = text

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


class JobFailed(JobrunnerError):
    """`job.result()` of a job that failed or was quarantined; all but the id is about its last attempt.

    Attributes:
        state: `failed` or `quarantined`.
        error_type, message: of the exception, or of what ended the process.
        traceback: from the worker, as text; `__cause__` shows it where this exception is printed. None when there was no exception.
        exit_cause: `exception`, `timeout`, `signal 9`, `exit 1`, `lost worker`, …; see `v_attempts`.
    """

    def __init__(
        self,
        job_id: int,
        state: str,
        error_type: str | None,
        message: str | None,
        traceback: str | None = None,
        exit_cause: str | None = None,
    ) -> None:
        failed = "was quarantined" if state == "quarantined" else state
        super().__init__(
            f"job {job_id} {failed}: {error_type or 'unknown error'}: {message or ''}".rstrip(": "),
            hint=f"see:   jobrunner jobs show {job_id}",
        )
        self.job_id, self.state = job_id, state
        self.error_type, self.message, self.traceback, self.exit_cause = error_type, message, traceback, exit_cause
        if traceback:
            self.__cause__ = RemoteTraceback(traceback)


class JobCancelled(JobrunnerError):
    """`job.result()` of a job that was cancelled."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"job {job_id} was cancelled")
        self.job_id = job_id


class NoCurrentJob(JobrunnerError, RuntimeError):
    """`current_job()` was called outside of a running job."""

    hint = "call the task with .enqueue() and let a worker run it; a plain call of the function is no job"

    def __init__(self) -> None:
        super().__init__("there is no current job: this code does not run in a Jobrunner worker")


class NotDrained(JobrunnerError):
    """`drain()` of a test could not come to its end: jobs are still due; `attempts` is how many it had run."""

    def __init__(self, attempts: int, problem: str, *, hint: str) -> None:
        super().__init__(f"after {attempts:,} attempts jobs are still due: {problem}", hint=hint)
        self.attempts = attempts


class TimeLimitExceeded(JobrunnerError):
    """Recorded as the error type of an attempt that ran past its `time_limit` and was killed."""


class SoftTimeLimitExceeded(JobrunnerError):
    """Raised in a task that has run for its `soft_time_limit`: time to clean up, and to leave before `time_limit` kills it.

    Caught, it is as if it had not been; let through, it ends the attempt as any exception does.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(f"ran longer than its soft_time_limit of {seconds:g} s" if seconds else "ran longer than its soft_time_limit")
        self.seconds = seconds


class CpuLimitExceeded(JobrunnerError):
    """Recorded as the error type of an attempt whose processes used more CPU time than its `cpu_limit`."""


class MemoryLimitExceeded(JobrunnerError):
    """Recorded as the error type of an attempt whose processes together held more memory than its `memory_limit`."""


class OutputLimitExceeded(JobrunnerError):
    """Recorded as the error type of an attempt that wrote more to stdout and stderr than its `output_limit`."""


class ProcessLimitExceeded(JobrunnerError):
    """Recorded as the error type of an attempt that had more processes at once than its `max_processes`."""


class WorkerProcessDied(JobrunnerError):
    """Recorded as the error type of an attempt whose process died: killed by a signal, `os._exit`, out of memory."""


class EmbeddedError(JobrunnerError):
    """The embedded PostgreSQL could not be found, made, started or stopped; the hint names the way out."""


class InspectionError(JobrunnerError):
    """A question about jobs that cannot be answered as asked; nothing is wrong with the jobs."""


class InvalidFilter(InspectionError):
    """The filter text does not follow the filter language; `term` is the part that does not."""

    def __init__(self, term: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"filter {term!r}: {problem}" if term else f"the filter {problem}", hint=hint)
        self.term = term


class InvalidCursor(InspectionError):
    """The cursor was not made by this list, or by another release of it."""

    def __init__(self) -> None:
        super().__init__(
            "the cursor is not one that this list gave out",
            hint="take `next` or `prev` of an answer as it is, or leave it out to begin anew",
        )


class QueryTimeout(InspectionError):
    """A read took longer than it may; it was stopped so that it cannot disturb the workers."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"this question needs longer than {seconds:g} s and was stopped",
            hint="narrow the filter (state:failed, an exact task:…), or ask in psql: select … from jobrunner.v_jobs",
        )
        self.seconds = seconds


class TablesLocked(QueryTimeout):
    """A read gave up on a table that somebody has locked, most likely a migration."""

    def __init__(self, seconds: float) -> None:
        InspectionError.__init__(
            self,
            f"somebody has locked the job tables for longer than {seconds:g} s, most likely a migration",
            hint="try:   the same again in a moment;   select pid, query from pg_stat_activity where state <> 'idle'",
        )
        self.seconds = seconds
