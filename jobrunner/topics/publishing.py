"""Owns publishing: from a payload to one call of the database's `publish_events` in the transaction that it belongs to.

It must not decide who gets an event: the database does, in the same transaction, by the subscriptions that are there then.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError

from jobrunner import branches, checks, inserting, jsonvalues, places, subscriptions
from jobrunner.current import current_fence, current_session
from jobrunner.errors import ConfigurationError, InvalidPayload, LeaseLost, SchemaError
from jobrunner.inserting import Statement
from jobrunner.patterns import MAX_EVENT_KEY, check_event_name, check_topic
from jobrunner.policies import DEFAULT_SESSION
from jobrunner.topics import groups
from jobrunner.wakeups import waker_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta

    from jobrunner.app import JobRunner
    from jobrunner.database import Database
    from jobrunner.inspection.groups import Group
    from jobrunner.places import Place
    from jobrunner.policies import Duration

logger = logging.getLogger("jobrunner.topics")

EVENTS_PER_CALL = 1000  # of publish_many: what one statement is given
PUBLISH = Statement.of(
    "SELECT positions, queues FROM jobrunner.publish_events(CAST(:topic AS text), CAST(:events AS jsonb), CAST(:delay AS interval), "
    "CAST(:ttl AS interval), CAST(:priority AS integer), CAST(:parent_id AS bigint))"
)
_WHERE = "publish"
_PARTS = ("name", "payload", "key", "headers")
_LACKING = {"42883", "3F000"}  # SQLSTATE: no such function, no such schema
# Which subscriptions a database has been told of by this process. By pool: in a test that is rolled back it is told by each.
_told: WeakKeyDictionary[Database, frozenset[Any]] = WeakKeyDictionary()
_telling = threading.Lock()


class Topic:
    """A topic of an application, by its name; made by `jobs.topic(…)`. It need not be made anywhere: publishing is enough."""

    def __init__(self, jobs: JobRunner, name: str) -> None:
        self._jobs = jobs
        self.name = check_topic(name)

    def publish(
        self,
        name: str,
        payload: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        session: Any = DEFAULT_SESSION,
        connection: Any = None,
    ) -> int:
        """Publish one event: a row of the log, and a job for each group in queue mode one of whose patterns fits.

        One statement in its own short transaction, or in the transaction of the app's default session when it has one: then the event
        exists from that commit on. Takes no lock that others wait for. Every group is considered that was committed before the
        statement began (in a REPEATABLE READ transaction: before that began).

        Args:
            name: words with dots between them.
            payload: what JSON can hold; dates, dataclasses and the like by their natural form.
            key: what the event is about: groups in queue mode work on the events of one key one after the other.
            headers: an object beside the payload.
            delay, ttl: of the jobs: how long they wait, and after which time they are not begun any more. The log knows neither.
            priority: of the jobs, in place of what their subscriptions say.
            session, connection: write in the caller's transaction; `session=None`: in its own.

        Returns:
            The event's position in the log.

        Raises:
            ConfigurationError: the name, or an option, is not what it should be.
            InvalidPayload: JSON cannot hold the payload or the headers, or they are too large.
            LeaseLost: the job that publishes has been superseded; nothing was written.
            SchemaError: the database has not been upgraded.
        """
        return self.publish_many(
            [{"name": name, "payload": payload, "key": key, "headers": headers}],
            delay=delay, ttl=ttl, priority=priority, session=session, connection=connection,
        )[0]  # fmt: skip

    def publish_many(
        self,
        events: Iterable[Any],
        *,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        session: Any = DEFAULT_SESSION,
        connection: Any = None,
    ) -> list[int]:
        """Publish several events in their order, all or none, in one transaction; see `publish`.

        Args:
            events: each a pair of name and payload, or a mapping with `name`, `payload`, `key` and `headers`.

        Returns:
            The positions, in the order of the events.
        """
        jobs = self._jobs
        rows = [_row(event, jobs.max_payload_bytes) for event in events]
        if not rows:
            return []
        given = {
            "topic": self.name, "delay": _interval("delay", delay), "ttl": _interval("ttl", ttl, above_zero=True),
            "priority": None if priority is None else checks.checked("priority", checks.CHECKS["priority"], priority, _WHERE),
        }  # fmt: skip
        place = _place(jobs, self.name, session, connection)
        with _explained(jobs):
            tell(jobs, place)
            positions, queues = _write(jobs, place, given, rows)
        _written(jobs, place, len(rows), sorted(queues))
        return positions

    def rewind(self, group: str, to: datetime | int | str) -> groups.Rewound:
        """Set a group that reads the log to another place, also while it delivers: what is under way cannot move it on afterwards.

        Args:
            group: its name.
            to: an instant (what was published from then on), the position of the first event to be delivered, `earliest`, or
                `latest`, which leaves out what was published so far. What is not kept any more cannot come again.

        Raises:
            GroupNotFound: there is no such group.
            ConfigurationError: it is in queue mode, or `to` is none of these.
        """
        return groups.rewind(self._jobs.database, self.name, group, to, self._jobs.wake)

    def resume(self, group: str) -> bool:
        """Let a group that has stopped go on where it is: it gets the same events again. False when it was not stopped.

        Raises:
            GroupNotFound: there is no such group.
            ConfigurationError: it is in queue mode.
        """
        return groups.resume(self._jobs.database, self.name, group, self._jobs.wake)

    def groups(self) -> list[Group]:
        """The groups that are subscribed, and how far behind those are that read the log."""
        return [group for group in groups.groups(self._jobs.database) if group.topic == self.name]

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"


def tell(jobs: JobRunner, place: Place) -> None:
    """Make sure that the database knows what this process itself declares, before its first event: else that would miss it.

    In a transaction of its own, when a database is configured; it adds and changes, and marks nothing as gone: a script that imports half
    of the application publishes too.
    """
    declared = frozenset((key, value.task, value.patterns, value.mode) for key, value in jobs.subscriptions.items())
    if not declared:
        return
    own = isinstance(place, places.OwnTransaction) or jobs.configured_dsn() is not None
    if own and _told.get(jobs.database) == declared:
        return
    with _telling:
        documents = [subscription.document() for subscription in jobs.subscriptions.values()]
        try:
            subscriptions.declare(places.OwnTransaction(jobs.database) if own else place, jobs.rules_name, documents, complete=False)
        except pg.InsufficientPrivilege:
            logger.warning("this login may not write into jobrunner.subscriptions: a worker or `jobrunner topics sync` has to declare them")
        except DBAPIError as error:
            if not isinstance(error.orig, pg.InsufficientPrivilege):
                raise
            raise ConfigurationError(
                "this session may not write into jobrunner.subscriptions", hint="run:   jobrunner topics sync     (with a login that may)"
            ) from error
        if own:  # in the caller's transaction it may be rolled back
            _told[jobs.database] = declared


def _write(jobs: JobRunner, place: Place, given: Mapping[str, Any], rows: list[str]) -> tuple[list[int], set[str]]:
    """Write events, and give their positions and the queues where a group has something to do now."""
    positions: list[int] = []
    queues: set[str] = set()
    with _fenced(jobs, place) as parent_id, place.together() if len(rows) > EVENTS_PER_CALL else nullcontext():
        for start in range(0, len(rows), EVENTS_PER_CALL):
            events = "[" + ",".join(rows[start : start + EVENTS_PER_CALL]) + "]"
            ((found, woken),) = place.rows(PUBLISH, {**given, "events": events, "parent_id": parent_id})
            positions += found
            queues.update(woken)
    return positions, queues


@contextmanager
def _explained(jobs: JobRunner) -> Iterator[None]:
    """A database that lacks the functions was not upgraded, or is another one than that of the jobs."""
    try:
        yield
    except (pg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if (getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)) not in _LACKING:
            raise
        dsn = jobs.configured_dsn()
        where = dsn.target if dsn is not None else "the database of the session"
        problem = f"there are no topics in {where}: its schema is missing or too old"
        raise SchemaError(problem, hint="run:   jobrunner db upgrade") from error


def _place(jobs: JobRunner, topic: str, session: Any, connection: Any) -> Place:
    if connection is not None:
        if session is not DEFAULT_SESSION and session is not None:
            raise ConfigurationError("publish(session=…, connection=…): give one of the two")
        place = places.on_connection(connection)
    else:
        if session is DEFAULT_SESSION:
            session = current_session(jobs) or jobs.session
        if session is None:
            return places.OwnTransaction(jobs.database)
        place = places.in_session(session)
    if jobs.routing.databases and not branches.is_in(place.connection, jobs):
        raise ConfigurationError(
            f"topics live in the database {jobs.database_name!r}, and the session or connection is in another one: nobody would get an "
            f"event of {topic!r} there",
            hint="publish(session=None) writes it in a transaction of its own",
        )
    return place


@contextmanager
def _fenced(jobs: JobRunner, place: Place) -> Iterator[int | None]:
    """What a superseded attempt publishes is refused, as every other write of it. Gives the job that publishes, if it is one here."""
    fence = current_fence(jobs)
    if fence is None:
        yield None
        return
    parameters = {"fence_id": fence.id, "fence_lease": fence.lease}
    elsewhere = bool(jobs.routing.databases) and jobs.home.database_name != jobs.database_name
    looks = places.OwnTransaction(jobs.home.database) if elsewhere else place
    with place.together():
        if not looks.rows(inserting.fence(), parameters):
            raise LeaseLost(fence.id, fence.lease)
        yield None if elsewhere else fence.id
        if isinstance(place, places.OwnTransaction) and not looks.rows(inserting.fence(), parameters):
            raise LeaseLost(fence.id, fence.lease)


def _written(jobs: JobRunner, place: Place, count: int, queues: list[str]) -> None:
    """The hints go out after the commit: one for each queue where a group has something to do now."""
    own = isinstance(place, places.OwnTransaction)
    dsn = (jobs.database.dsn if own else jobs.configured_dsn()) if jobs.wakeups else None
    if dsn is None or not queues:
        place.written(count, None)
        return
    for queue in queues:
        place.written(count, (waker_of(dsn), queue))
        count = 0


def _row(event: Any, limit: int) -> str:
    """One event as JSON text. Raises ConfigurationError, InvalidPayload."""
    if isinstance(event, Mapping):
        if unknown := event.keys() - set(_PARTS):
            raise ConfigurationError(f"publish_many: an event has no {min(unknown)!r}", hint=f"known: {', '.join(_PARTS)}")
        name, payload, key, headers = (event.get(part) for part in _PARTS)
    elif isinstance(event, tuple) and len(event) == len(_PARTS[:2]):
        name, payload, key, headers = *event, None, None
    else:
        raise ConfigurationError(f"publish_many: {event!r} is neither a pair of name and payload nor a mapping")
    if key is not None and (not isinstance(key, str) or not 1 <= len(key) <= MAX_EVENT_KEY or jsonvalues.text_problem(key)):
        raise ConfigurationError(f"{_WHERE}(key={key!r}): expected text of 1 to {MAX_EVENT_KEY} characters")
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigurationError(f"{_WHERE}(headers={headers!r}): expected a dict")
    parts = {
        "name": json.dumps(check_event_name(name)),
        "payload": _text("payload", payload, limit),
        "key": json.dumps(key),
        "headers": _text("headers", headers or {}, limit),
    }
    return "{" + ",".join(f'"{part}":{text}' for part, text in parts.items()) + "}"


def _text(what: str, value: Any, limit: int) -> str:
    try:
        text, size = jsonvalues.checked_text(jsonvalues.plain(value, rich=True))
    except jsonvalues.Refusal as refusal:
        raise InvalidPayload(refusal.path(what), refusal.problem, instead=refusal.instead) from None
    if size > limit:
        raise InvalidPayload(
            what,
            f"is {size:,} bytes of JSON; the limit is {limit:,}",
            instead="store the data and publish its id, or raise max_payload_bytes (JOBRUNNER_MAX_PAYLOAD_BYTES)",
        )
    return text


def _interval(name: str, value: Any, *, above_zero: bool = False) -> str | None:
    if value is None:
        return None
    duration: timedelta = checks.checked(name, checks.CHECKS["time_limit" if above_zero else "backoff_base"], value, _WHERE)
    return jsonvalues.duration_text(duration)
