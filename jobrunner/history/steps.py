"""Owns the steps by which days of history get smaller: each is one short transaction, and any of them may be the last one for long.

It must not decide how long anything is kept, nor hold a lock on more than one old day while it reads or copies. A day that holds
nothing to keep is dropped. Else it is read through once and counted; then its few old rows are deleted, or its few rows to keep are
copied into a table that takes its place. While a day is read a trigger notes what comes or goes, so that the end of it is exact.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql

from jobrunner.history import swap
from jobrunner.history.days import KEY, Day, due_days, groups_of, kind_of, strays_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

    from jobrunner.history.archive import Kept, Sink

PATIENCE = timedelta(milliseconds=200)  # for any lock: whoever wants the table queues up behind us for as long
PAGES = 2048  # of 8 KB, read or copied in one step: 16 MB, some ten thousand jobs
FEW = 10_000  # rows of a day that are rather deleted than the others copied
MOST_STRAY = 1000  # rows of the default partition deleted in one step

_TURN = "SELECT pg_try_advisory_xact_lock(hashtextextended('jobrunner.retention', 0))"
_NUMBER = "SELECT pg_current_xact_id()::text::bigint"
# Instants and intervals in JSON are to be read anywhere, whatever the session prefers.
_SETTINGS = (
    "SELECT set_config('lock_timeout', %s, true), set_config('TimeZone', 'UTC', true), set_config('IntervalStyle', 'postgres', true)"
)


class Step(NamedTuple):
    """What one step did.

    Attributes:
        part: in which partition.
        did: `dropped`, `replaced` (by a smaller one), `began`, `counted`, `copied`, `deleted` or `settled` (there is no more to do).
        removed_count: rows that are gone by it; for a dropped day that nobody counted, as the planner guesses.
        archived_count: rows that the archive has taken.
    """

    part: str
    did: str
    removed_count: int = 0
    archived_count: int = 0


class Taken(Exception):
    """Another session takes a step at this moment; try again later."""


class ArchiveFailed(Exception):
    """The archive did not take the rows of a partition; they stay. `__cause__` is its error."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part


class Pruning:
    """Steps on one connection.

    Args:
        connection: in autocommit mode, of a role that owns the tables.
        older: takes the place of every duration of the rules; "forever" stays.
        sink: takes every row before it is removed.
        patience: for any lock.

    Attributes:
        pages: how much one step reads; may be changed between steps.
        leave: partitions that are not touched, because they were in use a moment ago.
    """

    def __init__(
        self, connection: Connection[Any], *, older: timedelta | None = None, sink: Sink | None = None, patience: timedelta = PATIENCE
    ) -> None:
        self.connection = connection
        self.older, self.sink, self.patience = older, sink, patience
        self.pages = PAGES
        self.leave: set[str] = set()
        self.at: str = ""

    def step(self) -> Step | None:
        """Do the next thing that is to be done; None when nothing is.

        Raises:
            Taken: another session is at it.
            ArchiveFailed: the rows of this step stay.
            psycopg.errors.LockNotAvailable: the partition `at` is in use for longer than `patience`; nothing was changed.
            psycopg.errors.InsufficientPrivilege: the role does not own the tables.
        """
        self.at = ""
        with self.connection.transaction():
            self.connection.execute(_SETTINGS, (f"{int(self.patience.total_seconds() * 1000)}ms",))
            if self._one(_TURN) is not True:
                raise Taken
            swap.clear_up(self.connection)
            for day in due_days(self.connection, self.older):
                if not day.is_done and day.part not in self.leave:
                    self.at = day.part
                    with self._archived() as kept:
                        return self._go_on(day, kept)
            return self._strays()

    def record_problem(self, part: str, problem: str) -> None:
        """Put on record, for everybody to see, why the rows of a partition stay."""
        self.connection.execute(
            "INSERT INTO jobrunner.retention_days AS d (part, rules, phase, problem, problem_at) VALUES (%s, '', 'settled', %s, now())"
            " ON CONFLICT (part) DO UPDATE SET problem = excluded.problem, problem_at = now()",
            (part, problem),
        )

    # -- one day

    def _go_on(self, day: Day, kept: list[Kept]) -> Step:
        if day.through and self.sink is None:
            return Step(day.part, "dropped", swap.drop(self.connection, day))
        if day.phase is None or not swap.is_sound(self.connection, day):
            swap.begin(self.connection, day)
            if day.through:
                swap.begin_copying(self.connection, day)  # all of it goes to the archive: there is nothing to count
            return Step(day.part, "began")
        is_through = day.next_block >= swap.pages_of(self.connection, day.part)
        match day.phase:
            case "counting":
                return self._decide(day) if is_through else self._count(day)
            case "copying":
                return self._replace(day) if is_through else self._copy(day, kept)
            case _:
                return self._settle(day) if is_through else self._delete(day, kept)

    def _replace(self, day: Day) -> Step:
        did = swap.replace(self.connection, day)
        return Step(day.part, did, 0 if did == "began" else day.due_count)

    def _settle(self, day: Day) -> Step:
        swap.settle(self.connection, day)
        return Step(day.part, "settled")

    def _decide(self, day: Day) -> Step:
        if day.kept_count == 0 and (self.sink is None or day.due_count == 0):
            did = swap.drop_checked(self.connection, day)
            return Step(day.part, did, day.due_count if did == "dropped" else 0)
        if day.due_count == 0:
            return self._settle(day)
        if day.due_count <= min(FEW, day.kept_count):
            swap.begin_deleting(self.connection, day)
        else:
            swap.begin_copying(self.connection, day)
        return Step(day.part, "began")

    def _count(self, day: Day) -> Step:
        groups = self._groups(day)
        self._advance(day, sum(row[2] for row in groups if row[3]), sum(row[2] for row in groups if not row[3]))
        return Step(day.part, "counted")

    def _delete(self, day: Day, kept: list[Kept]) -> Step:
        due = self._due_groups(day)
        removed = archived = 0
        if due[0]:
            # Locked and then taken by their addresses: what the archive gets is what is deleted, whatever comes meanwhile.
            pick = sql.SQL("SELECT p.ctid::text FROM {part} AS p WHERE {pages} AND {due} FOR UPDATE OF p")
            query = pick.format(part=_name(day.part), pages=self._pages_where(day), due=_among(day.parent))
            picked = [row[0] for row in self.connection.execute(query, _pairs(due)).fetchall()]
            removed, archived = self._delete_picked(day.parent, day.part, day, picked, kept)
        self._advance(day, 0, 0)
        return Step(day.part, "deleted", removed, archived)

    def _delete_picked(self, parent: str, part: str, day: Day | None, picked: list[str], kept: list[Kept]) -> tuple[int, int]:
        """Archive and delete locked rows, given by their addresses. Returns how many were deleted, and archived."""
        rows = sql.SQL("{part} AS p WHERE p.ctid = ANY ({picked}::tid[])").format(part=_name(part), picked=sql.Literal(picked))
        archived = self._hand_over(parent, day, rows, kept) if picked and self.sink is not None else 0
        return self.connection.execute(sql.SQL("DELETE FROM {}").format(rows)).rowcount, archived

    def _copy(self, day: Day, kept: list[Kept]) -> Step:
        due = self._due_groups(day)
        archived = self._archive(day, due, kept) if due[0] and self.sink is not None else 0
        # DO NOTHING: a row that was changed meanwhile comes by twice; it is noted, and the day is begun anew.
        copy = sql.SQL("INSERT INTO {copy} SELECT p.* FROM {part} AS p WHERE {rows} AND NOT {due} ON CONFLICT DO NOTHING")
        self.connection.execute(
            copy.format(copy=_name(swap.copy_of(day.part)), part=_name(day.part), rows=self._pages_where(day), due=_among(day.parent)),
            _pairs(due),
        )
        self._advance(day, archived if day.through else 0, 0)
        return Step(day.part, "copied", 0, archived)

    def _groups(self, day: Day) -> list[tuple[Any, ...]]:
        rows = sql.SQL("(SELECT p.* FROM {part} AS p WHERE {rows}) AS r").format(part=_name(day.part), rows=self._pages_where(day))
        return self.connection.execute(groups_of(day.parent, rows), {"day": day.day, "older": self.older}).fetchall()

    def _due_groups(self, day: Day) -> tuple[list[str], list[str]]:
        """The groups of rows in these pages that go. What comes between this and the next statement is of none of them, and stays."""
        found = [row for row in self._groups(day) if row[3]]
        return [row[0] for row in found], [row[1] for row in found]

    def _pages_where(self, day: Day) -> sql.Composed:
        first, behind = (sql.Literal(f"({block},0)") for block in (day.next_block, day.next_block + self.pages))
        return sql.SQL("p.ctid >= {first}::tid AND p.ctid < {behind}::tid").format(first=first, behind=behind)

    def _advance(self, day: Day, due_count: int, kept_count: int) -> None:
        self.connection.execute(
            "UPDATE jobrunner.retention_days SET next_block = next_block + %s, due_count = due_count + %s, kept_count = kept_count + %s,"
            " problem = NULL, problem_at = NULL, changed_at = now() WHERE part = %s",
            (self.pages, due_count, kept_count, day.part),
        )

    # -- rows without a day

    def _strays(self) -> Step | None:
        """Some rows of the default partitions that are too old: a clock that jumped, or nobody made partitions for long."""
        for parent, key in KEY.items():
            part = f"{parent}_default"
            if part in self.leave:
                continue
            self.at = part
            with self._archived() as kept:
                picked = self._pick_strays(parent, key)
                if not picked:
                    continue
                removed, archived = self._delete_picked(parent, part, None, picked, kept)
                self.connection.execute("UPDATE jobrunner.retention_days SET problem = NULL, problem_at = NULL WHERE part = %s", (part,))
                return Step(part, "deleted", removed, archived)
        return None

    def _pick_strays(self, parent: str, key: str) -> list[str]:
        query = sql.SQL(
            "SELECT d.ctid::text FROM {strays} ORDER BY d.finished_at, d.{key} LIMIT %(most)s FOR UPDATE OF d SKIP LOCKED"
        ).format(strays=strays_of(parent), key=sql.Identifier(key))
        return [row[0] for row in self.connection.execute(query, {"older": self.older, "most": MOST_STRAY}).fetchall()]

    # -- the archive

    def _archive(self, day: Day, due: tuple[list[str], list[str]], kept: list[Kept]) -> int:
        tasks, kinds = (sql.Literal(values) for values in due)
        among = sql.SQL("(p.task, p.{kind}) IN (SELECT * FROM unnest({tasks}::text[], {kinds}::text[]))").format(
            kind=kind_of(day.parent), tasks=tasks, kinds=kinds
        )
        rows = sql.SQL("{part} AS p WHERE {pages} AND {among}").format(part=_name(day.part), pages=self._pages_where(day), among=among)
        return self._hand_over(day.parent, day, rows, kept)

    def _hand_over(self, parent: str, day: Day | None, rows: sql.Composed, kept: list[Kept]) -> int:
        if self.sink is None:
            return 0
        number = self._one(_NUMBER)
        with self.connection.cursor() as cursor:
            query = sql.SQL("COPY (SELECT row_to_json(p) FROM {rows}) TO STDOUT").format(rows=rows)
            with cursor.copy(query) as copy:
                try:
                    taken = self.sink.keep(parent, day.day if day else None, number, (str(row[0]) for row in copy.rows()))
                except Exception as error:
                    raise ArchiveFailed(self.at) from error
        kept.append(taken)
        return taken.row_count

    @contextmanager
    def _archived(self) -> Iterator[list[Kept]]:
        """What the archive has taken in this step is forgotten again when the step comes to nothing."""
        kept: list[Kept] = []
        try:
            yield kept
        except BaseException:
            for taken in kept:
                taken.forget()
            raise

    def _one(self, query: str) -> Any:
        row = self.connection.execute(query).fetchone()
        return None if row is None else row[0]


def _name(part: str) -> sql.Identifier:
    return sql.Identifier("jobrunner", part)


def _among(parent: str) -> sql.Composed:
    """Whether a row is of a group that goes."""
    return sql.SQL("(p.task, p.{kind}) IN (SELECT * FROM unnest(%(tasks)s::text[], %(kinds)s::text[]))").format(kind=kind_of(parent))


def _pairs(due: tuple[list[str], list[str]]) -> dict[str, list[str]]:
    return {"tasks": due[0], "kinds": due[1]}
