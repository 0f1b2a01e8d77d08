"""Owns what `top` changes: retry and cancel, by the same verbs as `jobs retry` and `jobs cancel`.

It must not decide what is allowed in which state: the statements' guards do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from jobrunner.app import JobRunner
from jobrunner.errors import JobrunnerError
from jobrunner.inspection import get_job, translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.inspection import JobDetail
    from jobrunner.settings import Dsn

T = TypeVar("T")


class Refused(Exception):
    """A verb could not be done; the text says why, in one line."""


class Verbs:
    """The verbs on jobs of one database. Each answers with the sentence to show.

    Raises:
        Refused: the job is in no state for it, does not exist, or the database is away.
    """

    def __init__(self, dsn: Dsn) -> None:
        self._runner = JobRunner()
        self._runner.use_dsn(dsn.url, dsn.origin)

    def retry(self, job_id: int) -> str:
        """Run it again, or make it due now."""

        def again() -> str:
            self._runner.job(job_id).retry()
            return f"job {job_id} is queued: due now"

        return self._done(again)

    def cancel(self, job_id: int) -> str:
        """Cancel it, or ask it to stop when it runs."""
        texts = {"cancelled": "is cancelled", "requested": "was asked to stop"}
        return self._done(lambda: f"job {job_id} {texts[self._runner.job(job_id).cancel()]}")

    def detail(self, job_id: int) -> JobDetail:
        """Everything about it."""
        return self._done(lambda: get_job(self._runner.database, job_id))

    def _done(self, verb: Callable[[], T]) -> T:
        try:
            return verb()
        except JobrunnerError as error:
            raise Refused(" ".join(str(error).split())) from error
        except (psycopg.Error, SQLAlchemyError) as error:
            meant = translated(error, self._runner.database)
            if not isinstance(meant, JobrunnerError):
                raise
            raise Refused(" ".join(str(meant).split())) from error

    def close(self) -> None:
        """Close the connections."""
        self._runner.close()
