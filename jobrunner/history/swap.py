"""Owns what changes the set of days: the trigger on a day that is read, its copy, and the short lock in which one takes the other's place.

It must not read or copy rows while it holds that lock, but for the few that changed while the day was read. Everything here runs in the
caller's transaction, with the lock_timeout that the caller has set.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.errors import LockNotAvailable

from jobrunner.history.days import KEY, Day

if TYPE_CHECKING:
    from psycopg import Connection

COUNTED = 512  # pages of 8 KB: what is read in some milliseconds
SUFFIX = "_kept"  # of the table that is to take a day's place; `jobrunner.drift` knows it

# That of ensure_partitions and drop_partitions, which take their locks in another order.
_PARTITIONS_TURN = "SELECT pg_try_advisory_xact_lock(hashtextextended('jobrunner.ensure_partitions', 0))"


def copy_of(part: str) -> str:
    """The name of the table that is to take its place."""
    return part + SUFFIX


def file_of(connection: Connection[Any], part: str) -> int:
    """Which file the rows are in: it changes when somebody rewrites the table (VACUUM FULL, TRUNCATE), and row addresses with it."""
    return int(_one(connection, "SELECT coalesce(pg_relation_filenode(%s::regclass), 0)::bigint", (f"jobrunner.{part}",)))


def pages_of(connection: Connection[Any], part: str) -> int:
    """How many pages it has."""
    return int(_one(connection, "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint", (f"jobrunner.{part}",)))


def is_sound(connection: Connection[Any], day: Day) -> bool:
    """Whether what was begun can be gone on with: the rows are where they were, and the copy, if there should be one, is there."""
    copied = _one(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"jobrunner.{copy_of(day.part)}",))
    return day.file == file_of(connection, day.part) and (day.phase != "copying" or bool(copied))


def begin(connection: Connection[Any], day: Day) -> None:
    """From now on what comes to this day or leaves it is noted; it is read from its beginning.

    Locks: SHARE ROW EXCLUSIVE on the day, which waits for those who write there (a retry), and not for readers.
    """
    _run(connection, "DROP TABLE IF EXISTS {copy}", day)
    _run(
        connection,
        "CREATE OR REPLACE TRIGGER retention AFTER INSERT OR UPDATE OR DELETE ON {part}"
        " FOR EACH ROW EXECUTE FUNCTION jobrunner.note_change()",
        day,
    )
    connection.execute("DELETE FROM jobrunner.retention_changes WHERE part = %s", (day.part,))
    connection.execute(
        "INSERT INTO jobrunner.retention_days AS d (part, rules, phase, file) VALUES (%s, %s, 'counting', %s)"
        " ON CONFLICT (part) DO UPDATE SET rules = excluded.rules, phase = 'counting', file = excluded.file, next_block = 0, due_count = 0,"
        " kept_count = 0, changed_at = now()",
        (day.part, day.rules, file_of(connection, day.part)),
    )


def begin_deleting(connection: Connection[Any], day: Day) -> None:
    """The few old rows are to be deleted one portion after the other: nothing needs to be noted for that.

    Locks: ACCESS EXCLUSIVE on the day, for a moment.
    """
    _run(connection, "DROP TRIGGER IF EXISTS retention ON {part}", day)
    connection.execute("DELETE FROM jobrunner.retention_changes WHERE part = %s", (day.part,))
    _enter(connection, day, "deleting")


def begin_copying(connection: Connection[Any], day: Day) -> None:
    """Make the table that is to take the day's place. Its constraint spares the ATTACH a look at every row."""
    bounds = _bounds(day)
    _run(connection, "CREATE TABLE {copy} (LIKE {parent} INCLUDING ALL)", day)
    check = "ALTER TABLE {copy} ADD CONSTRAINT of_day CHECK (finished_at IS NOT NULL AND finished_at >= {low} AND finished_at < {high})"
    _run(connection, check, day, **bounds)
    _enter(connection, day, "copying")


def settle(connection: Connection[Any], day: Day) -> None:
    """Nothing is left to do for this day until the rules say something else. Locks: ACCESS EXCLUSIVE on the day, for a moment."""
    _run(connection, "DROP TRIGGER IF EXISTS retention ON {part}", day)
    connection.execute("DELETE FROM jobrunner.retention_changes WHERE part = %s", (day.part,))
    connection.execute("UPDATE jobrunner.retention_days SET phase = 'settled', changed_at = now() WHERE part = %s", (day.part,))


def drop(connection: Connection[Any], day: Day) -> int:
    """Drop a day that is over by every rule. Returns how many rows it had: counted when it is small, else as the planner guesses.

    Locks: ACCESS EXCLUSIVE on the table and the day until the commit; the files go after that.
    """
    _take_turn(connection)
    if pages_of(connection, day.part) <= COUNTED:
        rows = int(_one(connection, _composed("SELECT count(*) FROM {part}", day)))
    else:
        rows = int(_one(connection, _composed("EXPLAIN (FORMAT JSON) SELECT FROM {part}", day))[0]["Plan"]["Plan Rows"])
    _forget(connection, day)  # before the lock: pages that nobody has used lately come from the disk
    _run(connection, "LOCK TABLE ONLY {parent} IN ACCESS EXCLUSIVE MODE", day)
    _run(connection, "DROP TABLE {part}", day)
    _forget(connection, day)  # what was noted since: a day that was being read under other rules has its trigger still
    return rows


def drop_checked(connection: Connection[Any], day: Day) -> str:
    """Drop a day in which nothing to keep was found, unless something came to it meanwhile: then it is read again."""
    _take_turn(connection)
    if _has_gained(connection, day):
        begin(connection, day)
        return "began"
    _lock(connection, day)
    if _has_gained(connection, day):
        raise LockNotAvailable  # a row came in the last moment: another time
    _run(connection, "DROP TABLE {part}", day)
    _forget(connection, day)
    return "dropped"


def replace(connection: Connection[Any], day: Day) -> str:
    """Put the copy in the day's place, without the rows that left the day meanwhile; drop the day when there is nothing to put there.

    Locks: ACCESS EXCLUSIVE on the table, its default partition and the day until the commit, for some changes of the catalog.
    """
    _take_turn(connection)
    if _has_gained(connection, day):
        begin(connection, day)
        return "began"
    _take_over_losses(connection, day)  # most of it before the lock
    _lock(connection, day)
    if _has_gained(connection, day):
        raise LockNotAvailable  # a row came in the last moment: another time
    _take_over_losses(connection, day)
    kept = _one(connection, sql.SQL("SELECT EXISTS (SELECT FROM {copy})").format(copy=_name(copy_of(day.part))))
    _run(connection, "ALTER TABLE {parent} DETACH PARTITION {part}", day)
    _run(connection, "DROP TABLE {part}", day)
    if not kept:
        _forget(connection, day)
        return "dropped"
    _run(connection, "ALTER TABLE {parent} ATTACH PARTITION {copy} FOR VALUES FROM ({low}) TO ({high})", day, **_bounds(day))
    _run(connection, "ALTER TABLE {copy} DROP CONSTRAINT of_day", day)
    _run(connection, "ALTER TABLE {copy} RENAME TO {name}", day, name=sql.Identifier(day.part))
    connection.execute("DELETE FROM jobrunner.retention_changes WHERE part = %s", (day.part,))
    connection.execute("UPDATE jobrunner.retention_days SET phase = 'settled', changed_at = now() WHERE part = %s", (day.part,))
    return "replaced"


def clear_up(connection: Connection[Any]) -> None:
    """Forget what is on record of days that somebody else has dropped."""
    query = (
        "SELECT part FROM jobrunner.retention_days WHERE phase <> 'settled' AND to_regclass('jobrunner.' || part) IS NULL"
        " UNION SELECT part FROM jobrunner.retention_days WHERE part ~ '_[0-9]{8}$' AND to_regclass('jobrunner.' || part) IS NULL"
    )
    for (part,) in connection.execute(query).fetchall():
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_name(copy_of(part))))
        connection.execute("DELETE FROM jobrunner.retention_changes WHERE part = %s", (part,))
        connection.execute("DELETE FROM jobrunner.retention_days WHERE part = %s", (part,))


def _take_turn(connection: Connection[Any]) -> None:
    if not _one(connection, _PARTITIONS_TURN):
        raise LockNotAvailable


def _lock(connection: Connection[Any], day: Day) -> None:
    """The table first, as everybody who comes through it does; then the day. Not its siblings: ONLY."""
    _run(connection, "LOCK TABLE ONLY {parent} IN ACCESS EXCLUSIVE MODE", day)
    _run(connection, "LOCK TABLE {part} IN ACCESS EXCLUSIVE MODE", day)


def _has_gained(connection: Connection[Any], day: Day) -> bool:
    """Whether a row is there that came or changed after the trigger was made: by a clock that jumped, or by hand."""
    query = (
        "SELECT EXISTS (SELECT FROM jobrunner.retention_changes c JOIN {part} AS p"
        " ON p.{key} = c.id AND p.lease = c.lease AND p.finished_at = c.finished_at WHERE c.part = {name})"
    )
    return bool(_one(connection, _composed(query, day, key=sql.Identifier(KEY[day.parent]), name=sql.Literal(day.part))))


def _take_over_losses(connection: Connection[Any], day: Day) -> None:
    """What left the day leaves the copy: a job that was retried is alive elsewhere by now."""
    query = (
        "DELETE FROM {copy} AS p USING jobrunner.retention_changes c"
        " WHERE c.part = {name} AND p.{key} = c.id AND p.lease = c.lease AND p.finished_at = c.finished_at"
    )
    _run(connection, query, day, key=sql.Identifier(KEY[day.parent]), name=sql.Literal(day.part))


def _enter(connection: Connection[Any], day: Day, phase: str) -> None:
    connection.execute(
        "UPDATE jobrunner.retention_days SET phase = %s, next_block = 0, changed_at = now() WHERE part = %s", (phase, day.part)
    )


def _forget(connection: Connection[Any], day: Day) -> None:
    _run(connection, "DROP TABLE IF EXISTS {copy}", day)
    connection.execute("DELETE FROM jobrunner.retention_changes WHERE part = %s", (day.part,))
    connection.execute("DELETE FROM jobrunner.retention_days WHERE part = %s", (day.part,))


def _bounds(day: Day) -> dict[str, sql.Composable]:
    """From the first instant of the day (UTC) to that of the next."""
    return {
        "low": sql.SQL("{}::timestamptz").format(sql.Literal(f"{day.day} 00:00:00+00")),
        "high": sql.SQL("{}::timestamptz").format(sql.Literal(f"{day.day + timedelta(days=1)} 00:00:00+00")),
    }


def _composed(query: str, day: Day, **more: sql.Composable) -> sql.Composed:
    names = {"part": _name(day.part), "copy": _name(copy_of(day.part)), "parent": _name(day.parent)}
    return sql.SQL(query).format(**{**names, **more})


def _run(connection: Connection[Any], query: str, day: Day, **more: sql.Composable) -> None:
    connection.execute(_composed(query, day, **more))


def _one(connection: Connection[Any], query: Any, parameters: Any = None) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]


def _name(part: str) -> sql.Identifier:
    return sql.Identifier("jobrunner", part)
