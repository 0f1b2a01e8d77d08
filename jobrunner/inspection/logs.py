"""Owns reading what the attempts of a job logged: on from any line, or the newest ones, by index whatever the days of logs there are.

It must not read other jobs' lines, nor days on which the job cannot have logged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from jobrunner.errors import ConfigurationError, InvalidCursor, JobNotFound
from jobrunner.filters import MAX_ID
from jobrunner.inspection.reading import reading
from jobrunner.inspection.rows import STATE_WORD, created_at
from jobrunner.schema import job_history as finished
from jobrunner.schema import jobs as live

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.database import Database
    from jobrunner.filters import StateWord
    from jobrunner.inspection.reading import Reader
    from jobrunner.inspection.values import JobDetail, JobRow

DEFAULT_LINES = 200
MAX_LINES = 1_000
LEVELS = {"DEBUG": 1, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""The words of the view `v_logs`, each with the lowest level of Python's logging that has it."""

SLACK = timedelta(minutes=5)  # an instant of a line is the database's minus an age that the worker measured
_MAX_LINE = 2**31 - 1  # of an integer column
_LIVE = sa.select(STATE_WORD.label("state"), created_at(live), sa.null().cast(sa.DateTime(timezone=True)).label("finished_at"))
_FINISHED = sa.select(finished.c.state, created_at(finished), finished.c.finished_at).order_by(finished.c.finished_at.desc()).limit(1)
_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,10})", re.ASCII)


class LineKey(NamedTuple):
    """Where a line stands in the log of its job."""

    lease: int
    line: int

    def __str__(self) -> str:
        return f"{self.lease}-{self.line}"


@dataclass(frozen=True, slots=True)
class LogRow:
    """One line that an attempt logged.

    Attributes:
        lease: which of all attempts of the job it was; `attempt` is its number for the retry policy.
        line: which line of the attempt, from 1.
        level: `DEBUG | INFO | WARNING | ERROR | CRITICAL`; a level in between has the word of the lower one.
        message: perhaps of several lines.
    """

    lease: int
    attempt: int
    line: int
    logged_at: datetime
    level: str
    logger: str
    message: str

    @property
    def key(self) -> str:
        """The cursor of this line: what stands behind it is asked for with `after`."""
        return str(LineKey(self.lease, self.line))


@dataclass(frozen=True, slots=True)
class LogPage:
    """A stretch of the log of one job, in the order in which it was logged.

    Attributes:
        items: the lines.
        next: what stands behind the last line is asked for with this; without a line, what `after` was; None at the very beginning.
        more: whether there are lines behind it now.
        left_out: whether there are lines before the first, which `tail` left out.
        state: of the job, in the words of `v_jobs`.
        finished: whether the job has finished; its log is then complete, and with `more` False all of it has been read.
        at: the database's time of the answer.
    """

    items: tuple[LogRow, ...]
    next: str | None
    more: bool
    left_out: bool
    state: StateWord
    finished: bool
    at: datetime


def job_logs(
    database: Database,
    job: int | JobDetail,
    *,
    after: str | None = None,
    tail: int | None = None,
    limit: int = DEFAULT_LINES,
    attempt: int | None = None,
    level: str | None = None,
) -> LogPage:
    """Lines that the attempts of a job logged, the oldest first; also of attempts that still run.

    A read-only transaction of at most three statements, each through an index and ended after 2 s.

    Args:
        database: where.
        job: the primary key of its row, or what `get_job` answered, which saves asking for the job again.
        after: `next` of an earlier answer, or the `key` of a line: only lines behind it.
        tail: only the newest so many lines, 1 to 1,000; not together with `after`.
        limit: lines, 1 to 1,000; anything else is brought into that range.
        attempt: only lines of the attempt of this number.
        level: only lines of this level or a higher one: `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.

    Raises:
        JobNotFound: there is no such job.
        InvalidCursor: `after` is no cursor of a log.
        ConfigurationError: there is no such level, or both `after` and `tail` are given.
        QueryTimeout, DatabaseUnreachable, SchemaMissing: as for every read.
    """
    if after is not None and tail is not None:
        raise ConfigurationError("job_logs(after=…, tail=…): give one of the two")
    start, least = None if after is None else decode(after), _least(level)
    if isinstance(job, int) and not 0 <= job <= MAX_ID:
        raise JobNotFound(job)
    with reading(database) as reader:
        seen = _seen(reader, job) if isinstance(job, int) else job.job
        size = max(1, min(limit if tail is None else tail, MAX_LINES))
        wanted = Wanted(seen.id, _first(seen, reader), _last(seen, reader), start, attempt, least, newest=tail is not None)
        rows = [_line(row) for row in reader.connection.execute(statement(wanted, size + 1))]
    further, rows = len(rows) > size, rows[:size]
    if tail is not None:
        rows.reverse()
    return LogPage(
        items=tuple(rows),
        next=rows[-1].key if rows else after,
        more=further and tail is None,
        left_out=further and tail is not None,
        state=seen.state,
        finished=seen.finished_at is not None,
        at=reader.at,
    )


class Wanted(NamedTuple):
    """Which lines of which job.

    Attributes:
        first, last: days that end before, or begin after, are not looked at; `first` None looks at all days to `last`.
        start: only what stands behind this line.
        attempt, level: only lines of this attempt; of this level or a higher one. None is all.
        newest: from the end, backwards.
    """

    job_id: int
    first: datetime | None
    last: datetime
    start: LineKey | None = None
    attempt: int | None = None
    level: int | None = None
    newest: bool = False


def statement(wanted: Wanted, limit: int) -> sa.TextClause:
    """The statement of a page; the tests read its plan.

    The primary key of each day holds the lines of a job in order, so the days are merged and nothing is sorted. DISTINCT ON: lines
    that a worker wrote again, because the connection broke before it learned that they were kept, are one line.
    """
    conditions = ["job_id = :job_id", "logged_at <= :last"]
    values: dict[str, object] = {"job_id": wanted.job_id, "last": wanted.last, "most": limit}
    if wanted.first is not None:
        conditions.append("logged_at >= :first")
        values["first"] = wanted.first
    if wanted.start is not None:
        conditions.append("(lease, line) > (CAST(:lease AS bigint), CAST(:line AS integer))")
        values |= wanted.start._asdict()
    if wanted.attempt is not None:
        conditions.append("attempt = :attempt")
        values["attempt"] = wanted.attempt
    if wanted.level is not None:
        conditions.append("level >= :level")
        values["level"] = wanted.level
    way = "DESC" if wanted.newest else "ASC"
    return sa.text(
        "SELECT DISTINCT ON (lease, line) lease, attempt, line, logged_at, level, logger, message "  # noqa: S608  constants, parameters
        f"FROM jobrunner.job_logs WHERE {' AND '.join(conditions)} ORDER BY lease {way}, line {way}, logged_at {way} LIMIT :most"
    ).bindparams(**values)


def decode(text: str) -> LineKey:
    """The line that a cursor stands for. Raises InvalidCursor."""
    match = _CURSOR.fullmatch(text)
    key = LineKey(int(match[1]), int(match[2])) if match else None
    if key is None or key.lease > MAX_ID or key.line > _MAX_LINE:
        raise InvalidCursor
    return key


def _least(level: str | None) -> int | None:
    if level is None:
        return None
    if level.upper() not in LEVELS:
        raise ConfigurationError(f"there is no level {level!r}", hint=f"known: {', '.join(LEVELS)}")
    return LEVELS[level.upper()]


class _Job(NamedTuple):
    """What must be known of a job to find its lines."""

    id: int
    state: StateWord
    created_at: datetime
    finished_at: datetime | None


def _seen(reader: Reader, job_id: int) -> _Job:
    """The job, wherever it is."""
    row = reader.connection.execute(_LIVE.where(live.c.id == job_id)).one_or_none()
    if row is None:
        row = reader.connection.execute(_FINISHED.where(finished.c.id == job_id)).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return _Job(job_id, row.state, row.created_at, row.finished_at)


def _first(job: _Job | JobRow, reader: Reader) -> datetime | None:
    """No line is older than its job, unless somebody gave the row a creation time that has not come yet."""
    return job.created_at - SLACK if job.created_at <= reader.at else None


def _last(job: _Job | JobRow, reader: Reader) -> datetime:
    """A line is only kept while its attempt runs: none is younger than the end of the job."""
    return min(job.finished_at or reader.at, reader.at) + SLACK


def _line(row: sa.Row[Any]) -> LogRow:
    return LogRow(
        lease=row.lease,
        attempt=row.attempt,
        line=row.line,
        logged_at=row.logged_at,
        level=next((word for word, least in reversed(LEVELS.items()) if row.level >= least), "DEBUG"),
        logger=row.logger,
        message=row.message,
    )
