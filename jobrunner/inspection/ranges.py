"""Owns which ranges of which index of history a filter means, and the days that are looked at first.

It must not know live jobs, nor run anything. Most of the time of a short read of history is its planning, day by day: so what
most pages need is planned for the days next to where they begin, and the rest of history only when those had too little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.filters import FINISHED_WORDS, FinishedWord, JobFilter
from jobrunner.inspection.conditions import matching
from jobrunner.inspection.rows import FINISHED_COLUMNS
from jobrunner.schema import job_history as finished
from jobrunner.settings import DEFAULT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from jobrunner.inspection.cursors import Key

MAX_NAMES = 24  # whose index ranges are merged for one list; above, one walk with a filter is cheaper
FEW_NAMES = 2  # each planned with its own statistics; more of them are planned once for all
DAY = timedelta(days=1)  # of UTC, as partitions are
NEXT_DAYS = 2 * DAY  # which are looked at first, with the day that they begin in
# Anybody can write a cursor.
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC) + NEXT_DAYS, datetime.max.replace(tzinfo=UTC) - NEXT_DAYS - DAY

Conditions = list[sa.ColumnElement[bool]]


@dataclass(frozen=True)
class PastFilter:
    """What a filter means of finished jobs, with what had to be looked up for it.

    Attributes:
        wanted: the filter, patterns of tasks turned into names where history has few.
        at: the database's time.
        span: the first and the last instant at which any of them can have finished; None: any.
    """

    wanted: JobFilter
    at: datetime
    span: tuple[datetime, datetime] | None = None

    def parts(self, key: Key | None = None, *, newer: bool = False) -> tuple[sa.ColumnElement[bool], ...]:
        """Conditions that divide history into what is looked at first, next to the key, and what only when that had too little.

        At the end of a day: within one, a count that is planned as a walk over its rows as they lie (which is the fastest there is) would
        first read all that lie before the border, and take five times as long in the small hours as in the afternoon.
        """
        if self.span is not None:
            return (finished.c.finished_at.between(*self.span),)
        here = min(max((key and key.finished_at) or self.at, _EARLIEST), _LATEST)
        border = sa.literal(_midnight(here + NEXT_DAYS) + DAY if newer else _midnight(here - NEXT_DAYS))
        before, after = (finished.c.finished_at < border, finished.c.finished_at >= border)
        return (before, after) if newer else (after, before)


@dataclass(frozen=True)
class Range:
    """A range of an index, in order: rows that meet the conditions, or such a range of each of the names in a column.

    Attributes:
        conditions: of every row.
        column: `task`, `queue` or `state`, of which there are names.
        names: each a range of its own.
    """

    conditions: Conditions
    column: sa.ColumnElement[str] | None = None
    names: tuple[str, ...] = ()

    def also(self, *conditions: sa.ColumnElement[bool]) -> Range:
        """The part of it that meets these as well."""
        return replace(self, conditions=[*self.conditions, *conditions])

    def select(self, columns: Sequence[Any], limit: int, order: Sequence[sa.ColumnElement[Any]] = ()) -> sa.Select[Any]:
        """Its first rows in that order; of several names the first of each."""
        if self.column is None:
            return sa.select(*columns).where(*self.conditions).order_by(*order).limit(limit)
        listed = sa.literal(list(self.names), sa.ARRAY(sa.Text))
        names = sa.func.unnest(listed).table_valued(sa.column("name", sa.Text)).render_derived("names")
        one = sa.select(*columns).where(self.column == names.c.name, *self.conditions).order_by(*order).limit(limit)
        first = one.correlate(names).lateral("first")
        return sa.select(first).select_from(names.join(first, sa.true()))


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def page_parts(past: PastFilter, key: Key | None, limit: int, *, newer: bool) -> Iterator[sa.Select[Any]]:
    """The statements of a page of finished jobs in the order they are run, each only when those before it left room."""
    for days in past.parts(key, newer=newer):
        yield _page([each.also(days) for each in ranges(past.wanted)], key, limit, newer=newer)


def count_parts(past: PastFilter, most: int) -> Iterator[sa.Select[Any]]:
    """The ids of finished jobs, at most so many in each statement; the second is needed when the first had fewer."""
    for days in past.parts():
        yield some_ids([each.also(days) for each in ranges(past.wanted)], most)


def some_ids(parts: Sequence[Range], most: int) -> sa.Select[Any]:
    """The ids of jobs in these ranges, at most so many."""
    # A literal: what is prepared is planned for a number of rows, not for any.
    cap: Any = sa.literal_column(str(most))
    return _merged([each.select([finished.c.id], cap) for each in parts]).limit(cap)


def _page(parts: Sequence[Range], key: Key | None, limit: int, *, newer: bool) -> sa.Select[Any]:
    """Each range is in order already; the sort above them sees at most a page of each."""
    if key is not None:
        here, there = sa.tuple_(finished.c.finished_at, finished.c.id), sa.tuple_(sa.literal(key.finished_at), sa.literal(key.id))
        # The time by itself as well: days are left out of a plan by that, and not by a comparison of rows.
        side = finished.c.finished_at >= key.finished_at if newer else finished.c.finished_at <= key.finished_at
        parts = [each.also(side, here > there if newer else here < there) for each in parts]
    queries = [each.select(FINISHED_COLUMNS, limit, _in_order(finished.c, newer=newer)) for each in parts]
    if len(queries) == 1 and parts[0].column is None:
        return queries[0]
    merged = _merged(queries)
    return merged.order_by(*_in_order(merged.selected_columns, newer=newer)).limit(limit)


def _merged(queries: Sequence[sa.Select[Any]]) -> sa.Select[Any]:
    if len(queries) == 1:
        return queries[0].subquery("finished").select()
    return sa.union_all(*(query.subquery().select() for query in queries)).subquery("finished").select()


def _in_order(columns: Any, *, newer: bool) -> list[sa.ColumnElement[Any]]:
    return [columns[name].asc() if newer else columns[name].desc() for name in ("finished_at", "id")]


def ranges(wanted: JobFilter) -> list[Range]:
    """Ranges of indexes that do not overlap and together are what is wanted.

    Names of tasks have an index, with one of their own for what did not succeed; so have the states other than `succeeded`, and the queues
    beside the default one; else it is a walk by time. The literals `state <> 'succeeded'` and `queue <> 'default'` let the planner prove
    the partial indexes whatever the parameters.
    """
    words, common = wanted.finished_words, matching(finished, wanted)
    some = [] if len(words) == len(FINISHED_WORDS) else [_state_in(words)]
    if wanted.ids or not words:
        return [Range([*common, *some, *([] if words else [sa.false()])])]
    unsuccessful = [] if "succeeded" in words else [finished.c.state != sa.literal_column("'succeeded'")]
    names = tuple(pattern.text for pattern in wanted.tasks if not pattern.prefix)
    if names and len(names) == len(wanted.tasks) <= MAX_NAMES:
        return _of_each(finished.c.task, names, [*matching(finished, replace(wanted, tasks=())), *some, *unsuccessful])
    if unsuccessful:
        return _of_each(finished.c.state, tuple(word for word in FINISHED_WORDS if word in words), [*common, *unsuccessful])
    if wanted.queues and not wanted.tasks and len(wanted.queues) <= MAX_NAMES:
        others = [*matching(finished, replace(wanted, queues=())), *some]
        beside = tuple(queue for queue in wanted.queues if queue != DEFAULT_QUEUE)
        default = [Range([finished.c.queue == DEFAULT_QUEUE, *others])] if DEFAULT_QUEUE in wanted.queues else []
        return [*_of_each(finished.c.queue, beside, [finished.c.queue != sa.literal_column(f"'{DEFAULT_QUEUE}'"), *others]), *default]
    return [Range([*common, *some])]


def _of_each(column: sa.ColumnElement[str], names: tuple[str, ...], conditions: Conditions) -> list[Range]:
    if len(names) > FEW_NAMES:
        return [Range(conditions, column, names)]
    return [Range([column == name, *conditions]) for name in names]


def _state_in(words: Collection[FinishedWord]) -> sa.ColumnElement[bool]:
    # Literals: the words are a closed set, and the planner chooses by them.
    literals: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{word}'") for word in FINISHED_WORDS if word in words]
    return finished.c.state == literals[0] if len(literals) == 1 else finished.c.state.in_(literals)
