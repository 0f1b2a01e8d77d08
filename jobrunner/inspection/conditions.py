"""Owns what a filter's terms are in SQL, but for the states. It must not choose a table, an order or an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from jobrunner.filters import JobFilter, Pattern


def matching(table: sa.FromClause, wanted: JobFilter) -> list[sa.ColumnElement[bool]]:
    """Conditions of the filter but for states, on whatever has the columns `id`, `task` and `queue`."""
    columns = table.c
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.ids:
        conditions.append(columns.id == sa.any_(_array(wanted.ids)))
    if wanted.not_ids:
        conditions.append(columns.id != sa.all_(_array(wanted.not_ids)))
    if wanted.queues:
        conditions.append(columns.queue.in_(wanted.queues))
    if wanted.not_queues:
        conditions.append(columns.queue.not_in(wanted.not_queues))
    if wanted.tasks:
        conditions.append(_task_matches(columns.task, wanted.tasks))
    if wanted.not_tasks:
        conditions.append(sa.not_(_task_matches(columns.task, wanted.not_tasks)))
    return conditions


def _array(values: tuple[int, ...]) -> sa.ColumnElement[Any]:
    return sa.literal(list(values), sa.ARRAY(sa.BigInteger))


def _task_matches(column: sa.ColumnElement[str], patterns: tuple[Pattern, ...]) -> sa.ColumnElement[bool]:
    exact = [pattern.text for pattern in patterns if not pattern.prefix]
    parts = [column.startswith(pattern.text, autoescape=True) for pattern in patterns if pattern.prefix]
    return sa.or_(*([column.in_(exact)] if exact else []), *parts)
