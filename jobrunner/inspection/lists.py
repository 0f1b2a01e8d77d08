"""Owns the list of jobs: which rows, in which order, how many; by index, whatever the size of history.

It must not use OFFSET, an exact count of everything, or the view `v_jobs` (whose UNION hides the indexes' order).

The order is total: first the live jobs, by id descending; behind them the finished ones, by (finished_at, id) descending. So
work in hand comes first, then what ended last. A row keeps its place until its job finishes or is brought back.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import QueryTimeout
from jobrunner.filters import FINISHED_WORDS, LIVE_WORDS, STATE_WORDS, FinishedWord, JobFilter, LiveWord, Pattern, StateWord
from jobrunner.inspection import cursors
from jobrunner.inspection.cursors import Cursor, Key
from jobrunner.inspection.reading import reading
from jobrunner.inspection.rows import FINISHED_COLUMNS, LIVE_COLUMNS, job_row
from jobrunner.inspection.values import Count, JobRow, Page
from jobrunner.schema import job_history as finished
from jobrunner.schema import jobs as live
from jobrunner.settings import DEFAULT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from jobrunner.store import Database

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
COUNT_CAP = 10_000  # counted exactly up to here: a few milliseconds by index
LIVE_SAMPLE = 100_000  # waiting jobs that are looked at to count them by state: some tens of milliseconds
COUNT_TIMEOUT = timedelta(seconds=1)  # counts are an extra: a page is better without them than late
MAX_BRANCHES = 24  # index ranges merged for one list; above, one walk with a filter is cheaper
FEW_BRANCHES = 2  # planned for every day there is; more of them take longer to plan than to run
NEXT_DAYS = timedelta(days=2)  # which are looked at first then
# Anybody can write a cursor.
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC) + NEXT_DAYS, datetime.max.replace(tzinfo=UTC) - NEXT_DAYS
MAX_TASK_NAMES = 1_000  # looked at to expand task:mail.*


def list_jobs(database: Database, *, filter: JobFilter | None = None, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page:  # noqa: A002  the word of the API
    """One page of jobs, live ones first, then finished ones, both newest first.

    A read-only transaction of at most three statements, each through an index and ended after 2 s.

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
        expanded = _expanded(reader.connection, wanted)
        rows = _walk(reader.connection, wanted, expanded, start, size + 1)
        if start and start.newer and len(rows) <= size:
            # The newest end is reached: give the whole first page rather than the few rows before the cursor.
            start, rows = None, _walk(reader.connection, wanted, expanded, None, size + 1)
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
    wanted = filter or JobFilter()
    with reading(database, COUNT_TIMEOUT) as reader:
        number: int = reader.connection.scalar(sa.select(_capped_count(wanted, _expanded(reader.connection, wanted)))) or 0
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
                found.update(count(reader.connection, wanted))
        except QueryTimeout:
            continue
    return found


def _count_live_states(connection: sa.Connection, wanted: JobFilter) -> dict[StateWord, Count]:
    """One pass over the waiting jobs, which ends after LIVE_SAMPLE rows: a rare state has no index of its own to count by."""
    waiting: tuple[LiveWord, ...] = ("queued", "scheduled", "retrying")
    columns = (live.c.state, live.c.attempt, live.c.run_at)
    sample = sa.select(*columns).where(_QUEUED, *matching(live, wanted)).limit(LIVE_SAMPLE + 1).subquery()
    counts = [sa.func.count().filter(*_live_word(sample.c)[word]).label(word) for word in waiting]
    running = _capped_count(wanted.with_state("running"), wanted.with_state("running")).label("running")
    row = connection.execute(sa.select(*counts, sa.func.count().label("looked_at"), running)).one()._mapping  # noqa: SLF001  its public name
    whole = row["looked_at"] <= LIVE_SAMPLE
    return {word: Count(min(row[word], COUNT_CAP), exact=row[word] <= COUNT_CAP and (whole or word == "running")) for word in LIVE_WORDS}


def _count_finished_states(connection: sa.Connection, wanted: JobFilter) -> dict[StateWord, Count]:
    expanded = _expanded(connection, wanted)
    counts = [_capped_count(wanted.with_state(word), expanded.with_state(word)).label(word) for word in FINISHED_WORDS]
    row = connection.execute(sa.select(*counts)).one()
    return {word: Count(min(number, COUNT_CAP), exact=number <= COUNT_CAP) for word, number in zip(FINISHED_WORDS, row, strict=True)}


def page_statements(wanted: JobFilter, expanded: JobFilter, cursor: Cursor | None, limit: int) -> Iterator[sa.Select[Any]]:
    """The statements of a page in the order they are run, each only when those before it left room; the tests read their plans.

    Args:
        wanted: the filter for live jobs.
        expanded: the same with task patterns turned into names, for finished jobs.
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
        if of_finished and expanded.finished_words:
            yield from _finished_parts(expanded, start, limit, newer=newer)
        elif not of_finished and wanted.live_words:
            yield _live_part(wanted, start, limit, newer=newer)


def _walk(connection: sa.Connection, wanted: JobFilter, expanded: JobFilter, cursor: Cursor | None, limit: int) -> list[JobRow]:
    """At most `limit` rows from the cursor on, in the direction of the walk."""
    rows: list[JobRow] = []
    for statement in page_statements(wanted, expanded, cursor, limit):
        rows += [job_row(row) for row in connection.execute(statement)]
        if len(rows) >= limit:
            break
    return rows[:limit]


def _live_part(wanted: JobFilter, key: Key | None, limit: int, *, newer: bool) -> sa.Select[Any]:
    query = sa.select(*LIVE_COLUMNS).where(*_live_conditions(wanted))
    if key is not None:
        query = query.where(live.c.id > key.id if newer else live.c.id < key.id)
    return query.order_by(live.c.id.asc() if newer else live.c.id.desc()).limit(limit)


def _finished_parts(wanted: JobFilter, key: Key | None, limit: int, *, newer: bool) -> Iterator[sa.Select[Any]]:
    """One statement; with many branches one of the days next to the key and one of the rest: each branch is planned for every day."""
    branches = _finished_branches(wanted)
    if len(branches) <= FEW_BRANCHES:
        yield _finished_part(branches, key, limit, newer=newer)
        return
    # By this machine's clock, if there is no key: wherever the border is, the two parts are all.
    here = min(max((key and key.finished_at) or datetime.now(UTC), _EARLIEST), _LATEST)
    border = sa.literal(here + NEXT_DAYS if newer else here - NEXT_DAYS)
    near, far = (finished.c.finished_at < border, finished.c.finished_at >= border)
    if not newer:
        near, far = far, near
    for part in (near, far):
        yield _finished_part([[*conditions, part] for conditions in branches], key, limit, newer=newer)


def _finished_part(branches: list[list[sa.ColumnElement[bool]]], key: Key | None, limit: int, *, newer: bool) -> sa.Select[Any]:
    """Each branch is a range of one index and already in order; the outer sort sees at most branches × limit rows."""
    queries = []
    for conditions in branches:
        query = sa.select(*FINISHED_COLUMNS).where(*conditions)
        if key is not None:
            here, there = sa.tuple_(finished.c.finished_at, finished.c.id), sa.tuple_(sa.literal(key.finished_at), sa.literal(key.id))
            # The time by itself as well: days are left out of a plan by that, and not by a comparison of rows.
            side = finished.c.finished_at >= key.finished_at if newer else finished.c.finished_at <= key.finished_at
            query = query.where(side, here > there if newer else here < there)
        queries.append(query.order_by(*_descending(finished.c, newer=newer)).limit(limit))
    if len(queries) == 1:
        return queries[0]
    merged = sa.union_all(*(query.subquery().select() for query in queries)).subquery("finished")
    return sa.select(merged).order_by(*_descending(merged.c, newer=newer)).limit(limit)


def _descending(columns: Any, *, newer: bool) -> list[sa.ColumnElement[Any]]:
    return [columns[name].asc() if newer else columns[name].desc() for name in ("finished_at", "id")]


def _capped_count(wanted: JobFilter, expanded: JobFilter) -> sa.ScalarSelect[int]:
    """Rows that match, counting stopped one above the cap."""
    parts = []
    if wanted.live_words:
        parts.append(sa.select(live.c.id).where(*_live_conditions(wanted)).limit(COUNT_CAP + 1))
    if expanded.finished_words:
        parts += [sa.select(finished.c.id).where(*conditions).limit(COUNT_CAP + 1) for conditions in _finished_branches(expanded)]
    if not parts:
        return sa.select(sa.literal(0)).scalar_subquery()
    rows = sa.union_all(*(part.subquery().select() for part in parts)).subquery().select().limit(COUNT_CAP + 1).subquery()
    return sa.select(sa.func.count()).select_from(rows).scalar_subquery()


def _live_conditions(wanted: JobFilter) -> list[sa.ColumnElement[bool]]:
    words, common = wanted.live_words, matching(live, wanted)
    if len(words) == len(LIVE_WORDS):
        return common
    return [*common, sa.or_(*(sa.and_(*_live_word(live.c)[word]) for word in LIVE_WORDS if word in words))]


def _finished_branches(wanted: JobFilter) -> list[list[sa.ColumnElement[bool]]]:
    """Conditions of index ranges that do not overlap and together are what is wanted.

    Names of tasks have an index, with one of their own for what did not succeed; so have the states other than `succeeded`, and the queues
    beside the default one; else it is a walk by time. The literals `state <> 'succeeded'` and `queue <> 'default'` let the planner prove
    the partial indexes whatever the parameters.
    """
    words, common = wanted.finished_words, matching(finished, wanted)
    some = [] if len(words) == len(FINISHED_WORDS) else [_state_in(words)]
    if wanted.ids or not words:
        return [[*common, *some, *([] if words else [sa.false()])]]
    unsuccessful = [] if "succeeded" in words else [finished.c.state != sa.literal_column("'succeeded'")]
    names = [pattern.text for pattern in wanted.tasks if not pattern.prefix]
    if names and len(names) == len(wanted.tasks) <= MAX_BRANCHES:
        others = matching(finished, replace(wanted, tasks=()))
        return [[finished.c.task == name, *others, *some, *unsuccessful] for name in names]
    if unsuccessful:
        return [[*common, _state_in({word}), *unsuccessful] for word in FINISHED_WORDS if word in words]
    if wanted.queues and not wanted.tasks and len(wanted.queues) <= MAX_BRANCHES:
        others = matching(finished, replace(wanted, queues=()))
        return [[*_in_queue(queue), *others, *some] for queue in wanted.queues]
    return [[*common, *some]]


def _in_queue(queue: str) -> list[sa.ColumnElement[bool]]:
    beside = [finished.c.queue != sa.literal_column(f"'{DEFAULT_QUEUE}'")] if queue != DEFAULT_QUEUE else []
    return [finished.c.queue == queue, *beside]


def _state_in(words: Collection[FinishedWord]) -> sa.ColumnElement[bool]:
    # Literals: the words are a closed set, and the planner chooses by them.
    literals: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{word}'") for word in FINISHED_WORDS if word in words]
    return finished.c.state == literals[0] if len(literals) == 1 else finished.c.state.in_(literals)


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


def matching(table: sa.FromClause, wanted: JobFilter) -> list[sa.ColumnElement[bool]]:
    """Conditions of the filter but for states, on whatever has the columns `id`, `task` and `queue`."""
    columns = table.c
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.ids:
        conditions.append(columns.id == sa.any_(_array(wanted.ids, sa.BigInteger)))
    if wanted.not_ids:
        conditions.append(columns.id != sa.all_(_array(wanted.not_ids, sa.BigInteger)))
    if wanted.queues:
        conditions.append(columns.queue.in_(wanted.queues))
    if wanted.not_queues:
        conditions.append(columns.queue.not_in(wanted.not_queues))
    if wanted.tasks:
        conditions.append(_task_matches(columns.task, wanted.tasks))
    if wanted.not_tasks:
        conditions.append(sa.not_(_task_matches(columns.task, wanted.not_tasks)))
    return conditions


def _array(values: tuple[int, ...], kind: type[sa.BigInteger]) -> sa.ColumnElement[Any]:
    return sa.literal(list(values), sa.ARRAY(kind))


def _task_matches(column: sa.ColumnElement[str], patterns: tuple[Pattern, ...]) -> sa.ColumnElement[bool]:
    exact = [pattern.text for pattern in patterns if not pattern.prefix]
    parts = [column.startswith(pattern.text, autoescape=True) for pattern in patterns if pattern.prefix]
    return sa.or_(*([column.in_(exact)] if exact else []), *parts)


def _expanded(connection: sa.Connection, wanted: JobFilter) -> JobFilter:
    """The filter with `task:mail.*` turned into the names that history holds, when they are few.

    A loose scan: one index descent for each distinct task, not one row read for each job.
    """
    if not any(pattern.prefix for pattern in wanted.tasks) or "succeeded" not in wanted.finished_words:
        return wanted
    names = connection.scalars(_TASK_NAMES, {"most": MAX_TASK_NAMES + 1}).all()
    meant = [name for name in names if any(pattern.matches(name) for pattern in wanted.tasks)]
    if len(names) > MAX_TASK_NAMES or len(meant) > MAX_BRANCHES:
        return wanted
    if not meant:
        return replace(wanted, not_states=wanted.not_states | frozenset(FINISHED_WORDS))
    return replace(wanted, tasks=tuple(Pattern(name) for name in meant))


_TASK_NAMES = sa.text(
    "WITH RECURSIVE names AS ("
    "(SELECT task FROM jobrunner.job_history ORDER BY task LIMIT 1) UNION ALL "
    "SELECT (SELECT h.task FROM jobrunner.job_history h WHERE h.task > names.task ORDER BY h.task LIMIT 1) "
    "FROM names WHERE names.task IS NOT NULL"
    ") SELECT task FROM names WHERE task IS NOT NULL LIMIT :most"
)


def _cursor(row: JobRow, *, newer: bool) -> str:
    return cursors.encode(Cursor(Key(row.finished_at, row.id), newer=newer))
