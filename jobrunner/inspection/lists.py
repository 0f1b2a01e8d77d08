"""Owns the list of jobs: which rows, in which order, how many; by index, whatever the size of history.

It must not use OFFSET, an exact count of everything, or the view `v_jobs` (whose UNION hides the indexes' order).

The order is total: first the live jobs, by id descending; behind them the finished ones, by (finished_at, id) descending. So
work in hand comes first, then what ended last. A row keeps its place until its job finishes or is brought back.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import QueryTimeout
from jobrunner.filters import FINISHED_WORDS, LIVE_WORDS, STATE_WORDS, JobFilter, LiveWord, Pattern, StateWord
from jobrunner.inspection import cursors
from jobrunner.inspection.conditions import matching
from jobrunner.inspection.cursors import Cursor, Key
from jobrunner.inspection.ranges import MAX_NAMES, PastFilter, count_parts, page_parts, ranges, some_ids
from jobrunner.inspection.reading import PREPARED, reading
from jobrunner.inspection.rows import LIVE_COLUMNS, job_row
from jobrunner.inspection.values import Count, JobRow, Page
from jobrunner.schema import jobs as live

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobrunner.database import Database
    from jobrunner.inspection.reading import Reader

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
COUNT_CAP = 10_000  # counted exactly up to here: a few milliseconds by index
LIVE_SAMPLE = 100_000  # waiting jobs that are looked at to count them by state: some tens of milliseconds
COUNT_TIMEOUT = timedelta(seconds=1)  # counts are an extra: a page is better without them than late
MAX_TASK_NAMES = 1_000  # looked at to expand task:mail.*


def list_jobs(database: Database, *, filter: JobFilter | None = None, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page:  # noqa: A002  the word of the API
    """One page of jobs, live ones first, then finished ones, both newest first.

    A read-only transaction of a few statements, each through an index and ended after 2 s.

    Args:
        database: where.
        filter: which jobs; None is all.
        cursor: `next` or `prev` of an earlier page with the same filter.
        limit: rows, 1 to 200; anything else is brought into that range.

    Raises:
        InvalidCursor: the text is no cursor of this list.
        QueryTimeout: the filter cannot be answered within 2 s.
        DatabaseUnreachable, SchemaMissing: as for every read.
    """
    wanted = filter or JobFilter()
    start = cursors.decode(cursor) if cursor else None
    size = max(1, min(limit, MAX_LIMIT))
    with reading(database) as reader:
        past = _past(reader, wanted)
        rows = read_page(reader.connection, page_statements(wanted, past, start, size + 1), size + 1)
        if start and start.newer and len(rows) <= size:
            # The newest end is reached: give the whole first page rather than the few rows before the cursor.
            start, rows = None, read_page(reader.connection, page_statements(wanted, past, None, size + 1), size + 1)
    more, rows = len(rows) > size, rows[:size]
    if start and start.newer:
        rows.reverse()
        has_older, has_newer = True, more
    else:
        has_older, has_newer = more, start is not None
    return Page(
        items=tuple(rows),
        next=_cursor(rows[-1], newer=False) if rows and has_older else None,
        prev=_cursor(rows[0], newer=True) if rows and has_newer else None,
        at=reader.at,
    )


def count_jobs(database: Database, filter: JobFilter | None = None) -> Count:  # noqa: A002  the word of the API
    """How many jobs match, counted up to 10,000.

    Raises:
        QueryTimeout: it cannot be told within 1 s.
        DatabaseUnreachable, SchemaMissing: as for every read.
    """
    wanted, number = filter or JobFilter(), 0
    with reading(database, COUNT_TIMEOUT) as reader:
        for statement in count_statements(wanted, _past(reader, wanted)):
            number += reader.connection.scalar(statement) or 0
            if number > COUNT_CAP:
                break
    return Count(min(number, COUNT_CAP), exact=number <= COUNT_CAP)


def count_states(database: Database, filter: JobFilter | None = None) -> dict[StateWord, Count | None]:  # noqa: A002  the word of the API
    """How many jobs of each state match the filter's other terms, each counted up to 10,000; None for what took too long.

    Raises:
        DatabaseUnreachable, SchemaMissing: as for every read.
    """
    wanted = (filter or JobFilter()).without_states()
    found: dict[StateWord, Count | None] = dict.fromkeys(STATE_WORDS)
    for count in (_count_live_states, _count_finished_states):
        try:
            with reading(database, COUNT_TIMEOUT) as reader:
                found.update(count(reader, wanted))
        except QueryTimeout:
            continue
    return found


def _count_live_states(reader: Reader, wanted: JobFilter) -> dict[StateWord, Count]:
    """One pass over the waiting jobs, which ends after LIVE_SAMPLE rows: a rare state has no index of its own to count by."""
    waiting: tuple[LiveWord, ...] = ("queued", "scheduled", "retrying")
    columns = (live.c.state, live.c.attempt, live.c.run_at)
    sample = sa.select(*columns).where(_QUEUED, *matching(live, wanted)).limit(LIVE_SAMPLE + 1).subquery()
    counts = [sa.func.count().filter(*_live_word(sample.c)[word]).label(word) for word in waiting]
    running = _number(_live_ids(wanted.with_state("running"))).scalar_subquery().label("running")
    row = reader.connection.execute(sa.select(*counts, sa.func.count().label("looked_at"), running)).one()._mapping  # noqa: SLF001  its public name
    whole = row["looked_at"] <= LIVE_SAMPLE
    return {word: Count(min(row[word], COUNT_CAP), exact=row[word] <= COUNT_CAP and (whole or word == "running")) for word in LIVE_WORDS}


def _count_finished_states(reader: Reader, wanted: JobFilter) -> dict[StateWord, Count]:
    past = _past(reader, wanted)
    each = {word: some_ids(ranges(past.wanted.with_state(word)), COUNT_CAP + 1) for word in FINISHED_WORDS}
    counts = [_number(ids).scalar_subquery().label(word) for word, ids in each.items()]
    row = reader.connection.execute(sa.select(*counts)).one()
    return {word: Count(min(number, COUNT_CAP), exact=number <= COUNT_CAP) for word, number in zip(FINISHED_WORDS, row, strict=True)}


def page_statements(wanted: JobFilter, past: PastFilter, cursor: Cursor | None, limit: int) -> Iterator[sa.Select[Any]]:
    """The statements of a page in the order they are run, each only when those before it left room; the tests read their plans.

    Args:
        wanted: the filter for live jobs.
        past: the same for finished jobs.
        cursor: where to begin; None at the newest.
        limit: rows of each statement.
    """
    key, newer = (cursor.key, cursor.newer) if cursor else (None, False)
    in_finished = key is not None and key.finished_at is not None
    # Older: on from the key, then what lies behind it. Newer: the same the other way round.
    parts: tuple[tuple[bool, Key | None], ...]
    if in_finished:
        parts = ((True, key), (False, None)) if newer else ((True, key),)
    else:
        parts = ((False, key),) if newer else ((False, key), (True, None))
    for of_finished, start in parts:
        if of_finished and past.wanted.finished_words:
            yield from page_parts(past, start, limit, newer=newer)
        elif not of_finished and wanted.live_words:
            yield _live_part(wanted, start, limit, newer=newer)


def read_page(connection: sa.Connection, statements: Iterable[sa.Select[Any]], limit: int) -> list[JobRow]:
    """The first `limit` rows of these statements, of which no more are run than it takes."""
    rows: list[JobRow] = []
    for statement in statements:
        rows += [job_row(row) for row in connection.execute(statement)]
        if len(rows) >= limit:
            break
    return rows[:limit]


def _live_part(wanted: JobFilter, key: Key | None, limit: int, *, newer: bool) -> sa.Select[Any]:
    query = sa.select(*LIVE_COLUMNS).where(*_live_conditions(wanted))
    if key is not None:
        query = query.where(live.c.id > key.id if newer else live.c.id < key.id)
    return query.order_by(live.c.id.asc() if newer else live.c.id.desc()).limit(limit)


def count_statements(wanted: JobFilter, past: PastFilter) -> Iterator[sa.Select[Any]]:
    """The statements whose numbers add up to a count, as far as one above the cap; the tests read their plans."""
    if wanted.live_words:
        yield _number(_live_ids(wanted))
    if past.wanted.finished_words:
        for ids in count_parts(past, COUNT_CAP + 1):
            yield _number(ids).execution_options(**PREPARED)


def _live_ids(wanted: JobFilter) -> sa.Select[Any]:
    return sa.select(live.c.id).where(*_live_conditions(wanted)).limit(COUNT_CAP + 1)


def _number(ids: sa.Select[Any]) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(ids.subquery())


def _live_conditions(wanted: JobFilter) -> list[sa.ColumnElement[bool]]:
    words, common = wanted.live_words, matching(live, wanted)
    if len(words) == len(LIVE_WORDS):
        return common
    return [*common, sa.or_(*(sa.and_(*_live_word(live.c)[word]) for word in LIVE_WORDS if word in words))]


_QUEUED = live.c.state == sa.literal_column("'queued'")


def _live_word(columns: Any) -> dict[LiveWord, tuple[sa.ColumnElement[bool], ...]]:
    """Conditions of each word, column by column, not the CASE of `rows`: the planner can estimate these, and so finds the right index."""
    queued, first = columns.state == sa.literal_column("'queued'"), columns.attempt == sa.literal_column("0")
    return {
        "queued": (queued, first, columns.run_at <= sa.func.now()),
        "scheduled": (queued, first, columns.run_at > sa.func.now()),
        "retrying": (queued, columns.attempt > sa.literal_column("0")),
        "running": (columns.state == sa.literal_column("'running'"),),
    }


def _past(reader: Reader, wanted: JobFilter) -> PastFilter:
    """The filter as it holds for finished jobs: `task:mail.*` turned into names, ids into the days that they finished on."""
    if wanted.ids and wanted.finished_words:
        first, last = reader.connection.execute(_SPAN, {"ids": list(wanted.ids)}).one()
        return PastFilter(_nothing(wanted), reader.at) if first is None else PastFilter(wanted, reader.at, (first, last))
    if not any(pattern.prefix for pattern in wanted.tasks) or "succeeded" not in wanted.finished_words:
        return PastFilter(wanted, reader.at)
    names = reader.connection.scalars(_TASK_NAMES).all()
    meant = [name for name in names if any(pattern.matches(name) for pattern in wanted.tasks)]
    if len(names) > MAX_TASK_NAMES or len(meant) > MAX_NAMES:
        return PastFilter(wanted, reader.at)
    return PastFilter(replace(wanted, tasks=tuple(Pattern(name) for name in meant)) if meant else _nothing(wanted), reader.at)


def _nothing(wanted: JobFilter) -> JobFilter:
    """The filter without any finished job."""
    return replace(wanted, not_states=wanted.not_states | frozenset(FINISHED_WORDS))


# Both look into every day, which takes longer to plan than to do. Names: a loose scan, one index descent for each task that there is, not
# one row read for each job.
_SPAN = sa.text(
    "SELECT min(finished_at), max(finished_at) FROM jobrunner.job_history WHERE id = ANY (ARRAY(SELECT unnest(CAST(:ids AS bigint[]))))"
).execution_options(**PREPARED)
_TASK_NAMES = sa.text(
    "WITH RECURSIVE names AS ("  # noqa: S608  constants
    "(SELECT task FROM jobrunner.job_history ORDER BY task LIMIT 1) UNION ALL "
    "SELECT (SELECT h.task FROM jobrunner.job_history h WHERE h.task > names.task ORDER BY h.task LIMIT 1) "
    "FROM names WHERE names.task IS NOT NULL"
    f") SELECT task FROM names WHERE task IS NOT NULL LIMIT {MAX_TASK_NAMES + 1}"
).execution_options(**PREPARED)


def _cursor(row: JobRow, *, newer: bool) -> str:
    return cursors.encode(Cursor(Key(row.finished_at, row.id), newer=newer))
