"""Owns `app.control`: revoking and purging tasks, looking at workers; Celery's remote control, as questions to the database.

It must not send anything to workers: they read their rows. What they cannot be told that way is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal as signals_of_system
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from jobrunner.compat.celery import signals
from jobrunner.compat.celery.app.context import Context
from jobrunner.compat.celery.app.inspecting import Inspect
from jobrunner.compat.celery.exceptions import Unsupported
from jobrunner.compat.celery.options import NAMES

if TYPE_CHECKING:
    from jobrunner.compat.celery.app.base import Celery

__all__ = ["Control", "Inspect"]

logger = logging.getLogger(__name__)

PURGED_AT_ONCE = 1000  # jobs that one statement calls off
_WAITING = (
    "SELECT id FROM jobrunner.jobs WHERE state = 'queued' AND queue = ANY (%(queues)s::text[]) AND id > %(after)s "
    "ORDER BY id LIMIT %(most)s"
)
_ALIVE = (
    "SELECT id, name, host, pid FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now() "
    "AND (%(names)s::text[] IS NULL OR name = ANY (%(names)s::text[])) ORDER BY id"
)
_LATER = "pause, resize or re-route workers by starting them with other options"


class Control:
    """What is asked of workers and of tasks that wait."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def inspect(self, destination: Any = None, timeout: float = 1.0, **kwargs: Any) -> Inspect:
        """Questions about workers; answered by the database at once."""
        return Inspect(self.app, destination=destination, timeout=timeout, **kwargs)

    def revoke(
        self, task_id: Any, destination: Any = None, terminate: bool = False, signal: Any = "SIGTERM", **_: Any  # noqa: ARG002, FBT001, FBT002
    ) -> None:
        """Cancel tasks, durably: one that waits is cancelled now; one that runs is not tried again, and ended when `terminate`.

        Args:
            task_id: one id or several; one that is not known, or has finished, is passed over.
            terminate: raise `JobStopped` in the body, and kill its process when that does not end it. Seen by its worker within a second.
            destination, signal: taken for compatibility.
        """
        for one in [task_id] if isinstance(task_id, str) else list(task_id):
            self._revoke(str(one), terminate=terminate)

    def _revoke(self, task_id: str, *, terminate: bool) -> None:
        from jobrunner.compat.celery import rows
        from jobrunner.errors import IllegalTransition, JobNotFound

        where = self.app.backend.find(task_id)
        if where is None:
            logger.warning("task %s is not known: there is nothing to revoke", task_id)
            return
        database, job_id = where[0].database, where[1]
        if rows.cancel(database, [job_id]):
            self._say_revoked(task_id)
        elif terminate:
            try:
                with database.store() as store:
                    store.cancel(job_id)
            except (IllegalTransition, JobNotFound):
                logger.info("task %s has finished: there is nothing to revoke", task_id)
        else:
            rows.note(database, job_id, {"revoke": True, "revoked": None})  # its next attempt, if there is to be one, sees it

    def _say_revoked(self, task_id: str) -> None:
        """No worker will ever see this task, so the signal is sent here."""
        found = self.app.backend.look(task_id)
        if found is None or not signals.task_revoked.receivers:
            return
        meta = self.app.backend.get_task_meta(task_id)
        request = Context({"id": task_id, "task": found.task, "args": meta["args"], "kwargs": meta["kwargs"], "called_directly": False})
        signals.task_revoked.send(
            sender=self.app.tasks.get(found.task, found.task), request=request, terminated=False, signum=None, expired=False
        )

    def terminate(self, task_id: Any, destination: Any = None, signal: Any = "SIGTERM", **kwargs: Any) -> None:
        """`revoke` with `terminate=True`."""
        self.revoke(task_id, destination=destination, terminate=True, signal=signal, **kwargs)

    def purge(self, connection: Any = None) -> int:  # noqa: ARG002
        """Cancel every job that waits in the app's queues, due or not. Returns how many; they stay visible as cancelled."""
        from jobrunner.compat.celery import rows

        count = 0
        for home in self.app.backend.homes():
            after = 0
            while True:
                given = {"queues": sorted(self.app.router.queues()), "after": after, "most": PURGED_AT_ONCE}
                ids = [job_id for (job_id,) in rows.rows(home.database, _WAITING, given)]
                if not ids:
                    break
                count += len(rows.cancel(home.database, ids))
                after = ids[-1]
        return count

    discard_all = purge

    def ping(self, destination: Any = None, timeout: float = 1.0, **_: Any) -> list[dict[str, Any]]:
        """One entry for each live worker."""
        return [{name: answer} for name, answer in (self.inspect(destination, timeout).ping() or {}).items()]

    def shutdown(self, destination: Any = None, **_: Any) -> None:
        """End workers of this host in order, as SIGTERM does: running tasks may finish.

        Raises:
            Unsupported: a worker is on another host, where no process of ours can signal it; those here have been told.
        """
        from jobrunner.compat.celery import rows

        names = [destination] if isinstance(destination, str) else list(destination) if isinstance(destination, Iterable) else None
        elsewhere: list[str] = []
        for home in self.app.backend.homes():
            for _, name, host, pid in rows.rows(home.database, _ALIVE, {"names": names}):
                if host == socket.gethostname():
                    with contextlib.suppress(ProcessLookupError):  # killed, while its lease holds on: the others are to be told
                        os.kill(pid, signals_of_system.SIGTERM)
                else:
                    elsewhere.append(f"{name} on {host}")
        if elsewhere:
            raise Unsupported("control.shutdown of other hosts", f"stop {', '.join(elsewhere)} with its service manager, or SIGTERM there")

    def rate_limit(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("control.rate_limit", NAMES["control.rate_limit"].note)

    def broadcast(self, command: str, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported(f"control.broadcast({command!r})", f"there are no control messages; {_LATER}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise Unsupported(f"control.{name}", f"there are no control messages; {_LATER}")
