"""Owns references: a key in a space, given to a job by whoever enqueued it, by which other processes find the job again.

It must not enqueue (`enqueue` writes a reference and its job in one statement) nor look at jobs beyond whether they are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from psycopg import errors as pg

from jobrunner import checks
from jobrunner.errors import DuplicateReference, SchemaMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, LiteralString

    from jobrunner.database import Database
    from jobrunner.places import CallersTransaction
    from jobrunner.store import Store

_FIND = "SELECT key, job_id FROM jobrunner.job_references WHERE space = %(space)s AND key = ANY (%(keys)s::text[])"
_KEY_OF = "SELECT key FROM jobrunner.job_references WHERE space = %(space)s AND job_id = %(job_id)s ORDER BY created_at LIMIT 1"
_ADD = (
    "INSERT INTO jobrunner.job_references (space, key, job_id) VALUES (%(space)s, %(key)s, %(job_id)s) "
    "ON CONFLICT (space, key) DO NOTHING RETURNING job_id"
)
_DROP = (
    "DELETE FROM jobrunner.job_references WHERE space = %(space)s AND key = %(key)s "
    "AND (%(job_id)s::bigint IS NULL OR job_id = %(job_id)s::bigint) RETURNING job_id"
)
_DROP_IN = (
    "DELETE FROM jobrunner.job_references WHERE space = :space AND key = :key AND job_id = CAST(:job_id AS bigint) RETURNING job_id"
)
_COUNT = "SELECT count(*) FROM jobrunner.job_references WHERE space = %(space)s"
_KEYS = "SELECT key FROM jobrunner.job_references WHERE space = %(space)s ORDER BY created_at, job_id"
# One statement is one snapshot: a job on its way from one table to the other is in one of them. LIMIT keeps it a probe of primary keys.
_THERE = """
SELECT asked.id FROM unnest(%(ids)s::bigint[]) AS asked (id)
CROSS JOIN LATERAL (
    (SELECT true FROM jobrunner.jobs j WHERE j.id = asked.id LIMIT 1)
    UNION ALL
    (SELECT true FROM jobrunner.job_history h WHERE h.id = asked.id LIMIT 1)
    LIMIT 1
) AS found
"""
_TRIM = """
DELETE FROM jobrunner.job_references r
USING (
    SELECT key FROM jobrunner.job_references WHERE space = %(space)s ORDER BY created_at DESC, job_id DESC OFFSET %(most)s
) AS old
WHERE r.space = %(space)s AND r.key = old.key AND NOT EXISTS (SELECT FROM jobrunner.jobs j WHERE j.id = r.job_id)
RETURNING r.key
"""
# LIMIT keeps it a probe of the primary keys of `jobs` and of each day of history for each reference, and the array that the planner cannot
# count keeps the DELETE on its index, whatever the statistics say. One statement is one snapshot: a job on its way from one table to the
# other is in one of them. A day's patience beside that: nothing is dropped sooner, however history is removed.
_PRUNE = """
/* jobrunner:prune_references */
WITH looked AS MATERIALIZED (
    SELECT r.job_id FROM jobrunner.job_references r
    WHERE r.job_id > %(after_id)s::bigint
    ORDER BY r.job_id FETCH FIRST (%(most)s::integer) ROWS WITH TIES
), gone AS MATERIALIZED (
    SELECT l.job_id FROM looked l
    LEFT JOIN LATERAL (
        (SELECT true AS there FROM jobrunner.jobs j WHERE j.id = l.job_id LIMIT 1)
        UNION ALL
        (SELECT true FROM jobrunner.job_history h WHERE h.id = l.job_id LIMIT 1)
        LIMIT 1
    ) AS found ON true
    WHERE found.there IS NULL
), dropped AS (
    DELETE FROM jobrunner.job_references r
    WHERE r.job_id = ANY (ARRAY(SELECT job_id FROM gone)) AND r.created_at < now() - interval '1 day'
    RETURNING r.job_id
)
SELECT max(job_id), count(*), (SELECT count(*) FROM dropped) FROM looked
"""


class Walked(NamedTuple):
    """One step of `prune`: the last job whose reference was looked at (None: there was none), how many were, how many of them are gone."""

    last_id: int | None
    looked: int
    dropped: int


class References:
    """The references of one database. Each verb is one statement that commits by itself; none waits for a lock of a job.

    Args:
        database: `jobs.database`, or that of a branch.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, space: str, key: str) -> int | None:
        """The id of the job that has the reference. It may be that of a job that retention has dropped since."""
        return self.find_many(space, [key]).get(key)

    def find_many(self, space: str, keys: Iterable[str]) -> dict[str, int]:
        """The ids of the jobs that have these references; keys that are not given are left out."""
        return dict(self._run(_FIND, {"space": space, "keys": list(keys)}))

    def key_of(self, space: str, job_id: int) -> str | None:
        """The key that a job has in a space, the oldest if it has several; None when it has none."""
        rows = self._run(_KEY_OF, {"space": space, "job_id": job_id})
        return rows[0][0] if rows else None

    def add(self, space: str, key: str, job_id: int) -> None:
        """Give a reference to a job that is there already; a new job gets its own by `options(reference=…)`.

        Waits while another transaction is about to give the same reference.

        Raises:
            DuplicateReference: another job has it.
            ConfigurationError: the space or the key is no text that can be one.
        """
        checks.reference((space, key))
        if not self._run(_ADD, {"space": space, "key": key, "job_id": job_id}):
            raise DuplicateReference(space, key)

    def drop(self, space: str, key: str, job_id: int | None = None) -> int | None:
        """Take the reference away, with `job_id` only from that job; the job stays. Returns its id, or None when nothing was taken away."""
        rows = self._run(_DROP, {"space": space, "key": key, "job_id": job_id})
        return rows[0][0] if rows else None

    def trim(self, space: str, most: int) -> list[str]:
        """Take away all but the newest `most` references of a space; one whose job is not finished stays. Returns their keys."""
        return [key for (key,) in self._run(_TRIM, {"space": space, "most": most})]

    def count(self, space: str) -> int:
        """How many there are in a space."""
        return int(self._run(_COUNT, {"space": space})[0][0])

    def keys(self, space: str) -> list[str]:
        """All keys of a space, the oldest first."""
        return [key for (key,) in self._run(_KEYS, {"space": space})]

    def there(self, job_ids: Iterable[int]) -> set[int]:
        """Those of the jobs that are live or in history: a reference may outlive its job, for a day and longer."""
        return {job_id for (job_id,) in self._run(_THERE, {"ids": list(job_ids)})}

    def _run(self, statement: LiteralString, parameters: Mapping[str, Any]) -> list[Any]:
        try:
            with self._database.store() as store:
                return store.connection.execute(statement, parameters, prepare=True).fetchall()
        except pg.UndefinedTable as error:
            raise SchemaMissing(self._database.dsn.target) from error


def drop_in(place: CallersTransaction, space: str, key: str, job_id: int) -> bool:
    """Take the reference away from that job in the caller's transaction: after its rollback it is there as before.

    Until that ends, whoever gives or drops the same reference waits. False when it is not that job's any more.
    """
    from jobrunner.inserting import Statement  # whoever has such a transaction has imported SQLAlchemy

    return bool(place.rows(Statement.of(_DROP_IN), {"space": space, "key": key, "job_id": job_id}))


def prune(store: Store, after_id: int, most: int) -> Walked:
    """Drop references whose job is neither live nor in history, of the next `most` after the one of job `after_id`.

    A reference younger than a day stays. Locks the rows that it drops.
    """
    row = store.connection.execute(_PRUNE, {"after_id": after_id, "most": most}, prepare=True).fetchone()
    return Walked(*row) if row is not None else Walked(None, 0, 0)
