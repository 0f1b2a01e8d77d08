"""Owns what a subscription is, and that the database knows those which the code declares.

It must not remove any: what nobody declares any more goes on getting its events until somebody says otherwise.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

from jobrunner import jsonvalues

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobrunner.inserting import Statement
    from jobrunner.policies import Policy

Mode = Literal["queue", "log"]
OnFailure = Literal["stop", "skip"]
QUEUE, LOG = "queue", "log"
EARLIEST, LATEST = "earliest", "latest"
BATCH = 100  # events in a list: one commit for all of them, and not many to be handed over again after a failure


class Runs(Protocol):
    """Where statements run: one of `places`, or a connection of a worker."""

    def rows(self, statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run one statement and give its rows."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One group of consumers of a topic.

    Attributes:
        topic, group: together they name it.
        mode: `queue` for a job for each event, `log` for batches in the order of the log.
        task: whose jobs do it.
        patterns: of the names of events; one of them has to fit.
        policy: of the jobs.
        start: where a group begins that reads the log, when it is new: `earliest`, `latest` or an instant as text.
        batch: events that are handed over at once, at most; of a group that reads the log.
        on_failure: what a group that reads the log does when a batch has failed for good.
    """

    topic: str
    group: str
    mode: str
    task: str
    patterns: tuple[str, ...]
    policy: Mapping[str, Any] = field(default_factory=dict)
    start: str = EARLIEST
    batch: int = BATCH
    on_failure: str = "stop"

    def document(self) -> dict[str, Any]:
        """As the database is told, and a worker hears it of the process that imports the application."""
        return {
            "topic": self.topic, "group_name": self.group, "mode": self.mode, "task": self.task, "patterns": list(self.patterns),
            **self.policy, "start": self.start, "batch_size": self.batch, "on_failure": self.on_failure,
        }  # fmt: skip


class Direct:
    """A connection of psycopg as a place where statements run."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run one statement and give its rows."""
        return self._connection.execute(statement.raw, parameters).fetchall()  # type: ignore[no-any-return]


def policy_document(policy: Policy) -> dict[str, Any]:
    """The columns of a policy that differ from the table's defaults, as JSON can hold them."""
    return {name: _plain(value) for name, value in policy.columns().items()}


def declare(place: Runs, app: str, declared: Iterable[Mapping[str, Any]], *, complete: bool) -> int:
    """Bring subscriptions, as `document()` gives them, to the database. Returns how many changed.

    One statement under an advisory lock that is held to the end of its transaction: of workers that start at once each waits for the one
    before. A group that reads the log gets its cursor here, and keeps it.

    Args:
        app: whose code says so.
        complete: these are all of that application: others of it are marked as declared by nobody.

    Raises:
        psycopg.errors.InvalidParameterValue: a pattern is none.
    """
    given = {"app": app, "declared": json.dumps(list(declared)), "complete": complete}
    return int(place.rows(_statement(), given)[0][0])


@functools.cache
def _statement() -> Statement:
    from jobrunner.inserting import Statement  # SQLAlchemy takes a quarter of a second to import; declaring in code needs it not

    return Statement.of(
        "SELECT jobrunner.declare_subscriptions(CAST(:app AS text), CAST(:declared AS jsonb), CAST(:complete AS boolean)) AS changed"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return jsonvalues.duration_text(value)
    return value.isoformat() if isinstance(value, datetime) else value
