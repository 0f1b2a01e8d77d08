"""Owns `celery-worker --purge`: what waits in some queues is cancelled. It must not touch a job that runs, nor delete a row of history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, find_database, routing

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = 200  # jobs in one transaction: it locks them all for a few milliseconds


def purge(queues: Sequence[str]) -> int:
    """Cancel every waiting job of these queues, a page at a time in transactions of their own. Returns how many there were.

    A job that another worker starts meanwhile goes on: only what waits is cancelled.

    Args:
        queues: names; none is the default queue.

    Raises:
        CommandError: there are several databases, and none was named.
        DatabaseUnreachable, SchemaError: as for every command that writes.
    """
    from jobrunner import statements
    from jobrunner.filters import JobFilter
    from jobrunner.inspection import list_jobs
    from jobrunner.settings import DEFAULT_QUEUE

    if shared().database is None and routing().databases:
        raise CommandError(Code.USAGE, "--purge is about one database, and there are several", hint="try:   --database NAME")
    database = checked_database(announce(find_database(of_app=True)))
    wanted = JobFilter(states=frozenset({"queued", "scheduled", "retrying"}), queues=tuple(queues) or (DEFAULT_QUEUE,))
    count, before = 0, list[int]()
    try:
        while (ids := [job.id for job in list_jobs(database, filter=wanted, limit=_PAGE).items]) and ids != before:
            with database.store() as store:
                count += len(store.connection.execute(statements.load("cancel"), {"ids": ids}).fetchall())
            before = ids
    finally:
        database.close()
    return count
