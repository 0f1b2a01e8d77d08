"""Owns the rules of the table `retention`: reading them, an operator's changes, and what the code of an application says.

It must not decide which rule holds for a job: the function `jobrunner.keep_of` does, for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.rows import class_row

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date, datetime, timedelta

    from psycopg import Connection

    from jobrunner.keeping import Rule


class RuleRow(NamedTuple):
    """One rule as it stands, and what it means today.

    Attributes:
        task, state: what it is about; `*` is all.
        keep: None is forever.
        origin: `operator`, `code` or `default`.
        app: whose code said it; empty for the others.
        changed_at, changed_by: None for defaults.
        overridden: whether other rules leave it nothing to say.
        through: the last day (UTC) that is too old by this rule; None when it keeps forever.
        next_at: when the day after that is too old.
    """

    task: str
    state: str
    keep: timedelta | None
    origin: str
    app: str
    changed_at: datetime | None
    changed_by: str | None
    overridden: bool
    through: date | None
    next_at: datetime | None


# A rule that cannot win for any job. Not every such rule is found (a pattern may cover another); those that matter are.
OVERRIDDEN = """(
    (r.origin = 'default' AND EXISTS (SELECT FROM jobrunner.retention o WHERE o.task = '*' AND o.state IN ('*', r.state)))
    OR (r.origin = 'code'
        AND EXISTS (SELECT FROM jobrunner.retention o WHERE o.origin = 'operator' AND o.task = r.task AND o.state = r.state))
    OR (r.task = '*' AND r.state = '*'
        AND 4 = (SELECT count(DISTINCT o.state) FROM jobrunner.retention o WHERE o.task = '*' AND o.state <> '*'))
)"""

_LIST = f"""
SELECT r.task, r.state, r.keep, r.origin, r.app, r.changed_at, r.changed_by, {OVERRIDDEN} AS overridden,
       (now() AT TIME ZONE 'UTC' - r.keep)::date - 1 AS through,
       ((now() AT TIME ZONE 'UTC' - r.keep)::date + 1 + r.keep) AT TIME ZONE 'UTC' AS next_at
FROM jobrunner.v_retention r
ORDER BY r.rank, r.task COLLATE "C", r.state, r.origin, r.app
"""  # noqa: S608  constants of this module

_SET = """
INSERT INTO jobrunner.retention AS r (task, state, keep) VALUES (%s, %s, %s)
ON CONFLICT (task, state, origin, app) DO UPDATE SET keep = excluded.keep, changed_at = now(), changed_by = CURRENT_USER
WHERE r.keep IS DISTINCT FROM excluded.keep
"""
_UNSET = "DELETE FROM jobrunner.retention WHERE task = %s AND state = %s AND origin = 'operator'"

# One statement for what was, one for what is: a start that changes nothing writes nothing.
_FORGET_CODE = """
DELETE FROM jobrunner.retention r
WHERE r.origin = 'code' AND r.app = %(app)s
  AND NOT EXISTS (SELECT FROM unnest(%(tasks)s::text[], %(states)s::text[]) AS s (task, state) WHERE s.task = r.task AND s.state = r.state)
"""
_SAY_CODE = """
INSERT INTO jobrunner.retention AS r (task, state, origin, app, keep)
SELECT s.task, s.state, 'code', %(app)s, s.keep
FROM unnest(%(tasks)s::text[], %(states)s::text[], %(keeps)s::interval[]) AS s (task, state, keep)
ORDER BY s.task, s.state
ON CONFLICT (task, state, origin, app) DO UPDATE SET keep = excluded.keep, changed_at = now(), changed_by = CURRENT_USER
WHERE r.keep IS DISTINCT FROM excluded.keep
"""


def list_rules(connection: Connection[Any]) -> list[RuleRow]:
    """Every rule, the most general first."""
    with connection.cursor(row_factory=class_row(RuleRow)) as cursor:
        return cursor.execute(_LIST).fetchall()


def set_rule(connection: Connection[Any], rule: Rule) -> bool:
    """Write an operator's rule in place of the one for the same task and state. False when it stood there already.

    Raises:
        psycopg.errors.CheckViolation: the state is none in which jobs end, or the duration is out of range.
    """
    return connection.execute(_SET, rule).rowcount > 0


def unset_rule(connection: Connection[Any], task: str, state: str) -> bool:
    """Take an operator's rule away; what the code says of the same is in force again. False when there was none."""
    return connection.execute(_UNSET, (task, state)).rowcount > 0


def say_code(connection: Connection[Any], app: str, rules: Iterable[Rule]) -> int:
    """Make the rules of one application's code those that it has now. Returns how many changed; writes nothing when none did.

    One transaction, under an advisory lock: of workers that start at once each waits for the one before, which takes milliseconds.
    """
    said = sorted({(rule.task, rule.state): rule for rule in rules}.values(), key=lambda rule: rule[:2])
    parameters = {
        "app": app,
        "tasks": [rule.task for rule in said],
        "states": [rule.state for rule in said],
        "keeps": [rule.keep for rule in said],
    }
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('jobrunner.retention.code', 0))")
        return connection.execute(_FORGET_CODE, parameters).rowcount + connection.execute(_SAY_CODE, parameters).rowcount
