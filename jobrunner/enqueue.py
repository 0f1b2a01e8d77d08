"""Owns the writing of jobs: one INSERT or COPY, unique keys, and the hint to workers.

It must not run on a second connection beside the caller's transaction, nor send a hint before the commit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from jobrunner import branches, inserting, jsonvalues, payload, places
from jobrunner.current import current_fence, current_session
from jobrunner.errors import DuplicateReference, EnqueueError, InvalidPayload, LeaseLost
from jobrunner.handle import Job
from jobrunner.policies import DEFAULT_SESSION
from jobrunner.states import State
from jobrunner.wakeups import waker_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jobrunner.commits import Hint
    from jobrunner.current import Fence
    from jobrunner.database import Database
    from jobrunner.places import Place
    from jobrunner.policies import Options
    from jobrunner.routing import Routing
    from jobrunner.settings import Dsn
    from jobrunner.tasks import Registry, Task

COPY_FROM = 500  # rows; fewer are one INSERT, which is less round trips
ROWS_PER_INSERT = 1000  # of a batch that cannot be copied: unique jobs, other drivers than psycopg
LINES_PER_WRITE = 500  # of COPY; fewer cost calls, more cost memory
UNIQUE_TRIES = 10  # the job that holds a key may finish between the INSERT and the look-up, and so on
_NOTHING: Mapping[str, Any] = {}
_BACKSLASH, _ESCAPED = "\\", "\\\\"


class Home(Protocol):
    """The database to which a job goes: the JobRunner's own, or one of several."""

    @property
    def session(self) -> Any:
        """In whose transaction jobs are written, unless an enqueue says otherwise."""

    @property
    def max_payload_bytes(self) -> int:
        """Of one job's arguments."""

    @property
    def wakeups(self) -> bool:
        """Whether to send hints."""

    @property
    def database_name(self) -> str:
        """Which of several databases it is."""

    @property
    def database(self) -> Database:
        """Where jobs go that are written in a transaction of their own."""

    @property
    def registry(self) -> Registry:
        """The tasks, for handles."""

    def configured_dsn(self) -> Dsn | None:
        """The database that is configured; never starts one."""

    def wake(self, queue: str) -> None:
        """Send a hint now."""


class Application(Protocol):
    """What writing jobs needs of the JobRunner."""

    @property
    def routing(self) -> Routing:
        """Which queues live in other databases."""

    @property
    def home(self) -> Home:
        """Whose jobs this process runs."""

    def branch_of(self, queue: str) -> Home:
        """Where the jobs of a queue go."""


def submit(application: Application, task: Task[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
    """Write one job; see `Task.enqueue`."""
    home = application.branch_of(options.policy.queue)
    bound = task.parameters.bind(args, kwargs)
    parameters: dict[str, Any] = {"task": task.name, "args": payload.object_text(bound, home.max_payload_bytes), **options.columns}
    unique = options.policy.unique
    if unique:
        parameters["unique_key"] = unique if isinstance(unique, str) else payload.unique_key(bound)
    if options.run_at is not None:
        parameters["run_at"] = options.run_at
    fence = _fence_in(application, home)
    if fence is not None:
        parameters.setdefault("parent_id", fence.id)
    statement = inserting.insert_one(
        tuple(parameters),
        delayed=options.delay is not None, unique=bool(unique), fenced=fence is not None,
        referenced=options.reference is not None, expiring=options.ttl is not None,
    )  # fmt: skip
    parameters |= _from_now(options)
    if options.reference is not None:
        parameters["reference_space"], parameters["reference_key"] = options.reference
    if fence is not None:
        parameters |= _fence_parameters(fence)
    place = _place(application, home, options)
    committed = isinstance(place, places.OwnTransaction)
    rows = place.rows(statement, parameters)
    if not rows:
        _refuse(place, fence, options)
        job_id, created = _find_or_insert(place, statement, parameters)
        if not created:
            return Job(home, job_id, State.QUEUED.value, created=False, seen=committed)
    else:
        job_id = rows[0][0]
    later = _is_later(options)
    place.written(1, None if later else _hint(home, place, options))
    return Job(home, job_id, "scheduled" if later else State.QUEUED.value, seen=committed)


def submit_many(application: Application, task: Task[..., Any], options: Options, calls: Iterable[Any]) -> Sequence[int]:
    """Write one job per call; see `Task.enqueue_many`."""
    if isinstance(calls, (str, Mapping)):
        raise TypeError(f"enqueue_many takes a list of calls, not one {type(calls).__name__}")
    if options.reference is not None:
        raise EnqueueError(
            f"enqueue_many cannot give the one reference {options.reference!r} to several jobs",
            hint="enqueue them one by one, each with a key of its own; one transaction holds them together: options(session=…)",
        )
    calls = calls if isinstance(calls, (list, tuple)) else list(calls)
    if not calls:
        return []
    home = application.branch_of(options.policy.queue)
    columns: dict[str, Any] = {"task": task.name, **options.columns}
    fence = _fence_in(application, home)
    if fence is not None:
        columns.setdefault("parent_id", fence.id)
    if options.run_at is not None:
        columns["run_at"] = options.run_at
    bound = _bound(task, calls)
    limit = home.max_payload_bytes
    place = _place(application, home, options)
    written = len(calls)
    ids: Sequence[int]
    with _fenced(place, fence):
        if options.policy.unique:
            ids, written = _insert_unique(place, columns, options, list(bound), limit)
        elif len(calls) < COPY_FROM or not place.can_copy:
            ids = _insert(place, columns, options, list(_texts(bound, limit)))
        else:
            texts = _texts(bound, limit)
            # In a transaction of its own the encoding goes on while the server stores the first rows; a call that is refused half-way
            # rolls back. In the caller's transaction that would be his whole work, so there everything is encoded first.
            ids = _copy(place, columns, options, texts if isinstance(place, places.OwnTransaction) else list(texts), len(calls))
    if written:
        place.written(written, None if _is_later(options) else _hint(home, place, options))
    return ids


def _fence_in(application: Application, home: Home) -> Fence | None:
    """The running attempt, when its row is where the new job goes.

    In another database the row cannot be part of the same statement. There the attempt is looked at just before, and the new job has
    no `parent_id`: that number would mean another job.
    """
    fence = current_fence(application)
    if fence is None or not application.routing.databases or application.home.database_name == home.database_name:
        return fence
    _check(places.OwnTransaction(application.home.database), fence)
    return None


def _fence_parameters(fence: Fence) -> dict[str, int]:
    return {"fence_id": fence.id, "fence_lease": fence.lease}


@contextmanager
def _fenced(place: Place, fence: Fence | None) -> Iterator[None]:
    """Around several statements: the attempt is looked at before them, and again last of all before they commit.

    A child that stood still amid a long COPY writes nothing when it goes on after its job was given to another. In the caller's
    transaction there is no last moment of ours: the caller's commit is.
    """
    if fence is None:
        yield
        return
    with place.together():
        _check(place, fence)
        yield
        if isinstance(place, places.OwnTransaction):
            _check(place, fence)


def _refuse(place: Place, fence: Fence | None, options: Options) -> None:
    """Nothing was written: say why, unless it is because of a unique key."""
    if fence is not None:
        _check(place, fence)
    if options.reference is not None:
        raise DuplicateReference(*options.reference)


def _check(place: Place, fence: Fence) -> None:
    """What a superseded attempt enqueues is refused, as every other write of it."""
    if not place.rows(inserting.fence(), _fence_parameters(fence)):
        raise LeaseLost(fence.id, fence.lease)


def _is_later(options: Options) -> bool:
    """Whether the job is scheduled: no worker need be told. By this host's clock, because it is only about the hint."""
    if options.run_at is not None:
        return options.run_at > datetime.now(UTC)
    return options.delay is not None and options.delay > timedelta(0)


def _from_now(options: Options) -> dict[str, timedelta]:
    """What is counted from the database's clock."""
    given = {"delay": options.delay, "ttl": options.ttl}
    return {name: value for name, value in given.items() if value is not None}


def _place(application: Application, home: Home, options: Options) -> Place:
    place: Place
    if options.connection is not None:
        place = places.on_connection(options.connection)
    else:
        session = options.session
        if session is DEFAULT_SESSION:
            session = current_session(application) or home.session
        if session is None:
            return places.OwnTransaction(home.database)
        place = places.in_session(session)
    if application.routing.databases:
        branches.refuse_other(place.connection, home, options.policy.queue)
    return place


def _hint(home: Home, place: Place, options: Options) -> Hint | None:
    if not home.wakeups:
        return None
    # An app may write through its session only and configure no database for Jobrunner: then workers poll.
    dsn = home.database.dsn if isinstance(place, places.OwnTransaction) else home.configured_dsn()
    return (waker_of(dsn), options.policy.queue) if dsn is not None else None


def _find_or_insert(place: Place, statement: inserting.Statement, parameters: Mapping[str, Any]) -> tuple[int, bool]:
    """The live job that has the key, or a new one if it finished meanwhile."""
    wanted = {"task": parameters["task"], "unique_keys": inserting.array_literal([parameters["unique_key"]])}
    for _ in range(UNIQUE_TRIES):
        found = place.rows(inserting.find_unique(), wanted)
        if found:
            return found[0][0], False
        rows = place.rows(statement, parameters)
        if rows:
            return rows[0][0], True
    raise _undecided(parameters["task"], parameters["unique_key"])


def _undecided(task: str, key: str) -> EnqueueError:
    return EnqueueError(
        f"unique key {key!r} of task {task!r} is taken by a job that this transaction cannot see",
        hint="a REPEATABLE READ transaction sees only what was there when it began: enqueue before reading, or in a transaction of its own",
    )


def _bound(task: Task[..., Any], calls: Iterable[Any]) -> Iterator[dict[str, Any]]:
    bind = task.parameters.bind
    for index, call in enumerate(calls):
        try:
            if type(call) is tuple:
                yield bind(call, _NOTHING)
            elif isinstance(call, Mapping):
                yield bind((), call)
            else:
                yield bind((call,), _NOTHING)
        except InvalidPayload as error:
            raise _of_call(index, error) from error.__cause__


def _texts(bound: Iterable[dict[str, Any]], limit: int) -> Iterator[str]:
    text_of = payload.object_text
    for index, arguments in enumerate(bound):
        try:
            yield text_of(arguments, limit)
        except InvalidPayload as error:
            raise _of_call(index, error) from error.__cause__


def _of_call(index: int, error: InvalidPayload) -> InvalidPayload:
    return InvalidPayload(f"[{index}].{error.argument}" if error.argument else f"[{index}]", error.problem, instead=error.hint)


def _insert(place: Place, columns: dict[str, Any], options: Options, texts: list[str]) -> list[int]:
    statement = inserting.insert_many(
        tuple(columns), delayed=options.delay is not None, unique=False, expiring=options.ttl is not None
    )
    parameters = {**columns, **_from_now(options)}
    ids: list[int] = []
    with place.together():
        for start in range(0, len(texts), ROWS_PER_INSERT):
            rows = place.rows(statement, {**parameters, "args_list": inserting.array_literal(texts[start : start + ROWS_PER_INSERT])})
            # Ids are taken from the sequence in the order of the calls; RETURNING promises no order.
            ids += sorted(row[0] for row in rows)
    return ids


def _allocate(place: Place, count: int, from_now: Mapping[str, timedelta]) -> tuple[Sequence[int], dict[str, datetime]]:
    """Ids, and the instants by the database's clock."""
    statement = inserting.allocate_ids(delayed="delay" in from_now, expiring="ttl" in from_now)
    first, last, scattered, run_at, expires_at = place.rows(statement, {"count": count, **from_now})[0]
    instants = {"run_at": run_at, "expires_at": expires_at}
    return scattered or range(first, last + 1), {name: instant for name, instant in instants.items() if instant is not None}


def _copy(place: Place, columns: dict[str, Any], options: Options, texts: Iterable[str], count: int) -> Sequence[int]:
    with place.together() as connection:
        ids, instants = _allocate(place, count, _from_now(options))
        columns = {**columns, **instants}
        suffix = "".join("\t" + inserting.copy_field(_as_text(value)) for value in columns.values())
        # JSON escapes control characters itself, so that the backslash is all that COPY would misread.
        lines = (f"{job_id}\t{text.replace(_BACKSLASH, _ESCAPED)}{suffix}\n" for job_id, text in zip(ids, texts, strict=True))
        with connection.cursor() as cursor, cursor.copy(inserting.copy_text(tuple(columns))) as copy:
            while chunk := "".join(itertools.islice(lines, LINES_PER_WRITE)):
                copy.write(chunk)
    return ids


def _insert_unique(
    place: Place, columns: dict[str, Any], options: Options, bound: list[dict[str, Any]], limit: int
) -> tuple[list[int], int]:
    """Insert what is not there yet. Returns the id for each call, its own or that of the job with its key, and how many are new."""
    unique = options.policy.unique
    texts = list(_texts(bound, limit))
    keys = [unique if isinstance(unique, str) else payload.unique_key(arguments) for arguments in bound]
    first_call = {key: index for index, key in reversed(list(enumerate(keys)))}
    statement = inserting.insert_many(
        tuple(columns), delayed=options.delay is not None, unique=True, expiring=options.ttl is not None
    )
    known: dict[str, int] = {}
    created = 0
    with place.together():
        numbers, _ = _allocate(place, len(keys), {})
        # Sorted, so that two callers with the same keys wait for each other instead of deadlocking; the ids keep the calls' order.
        missing = sorted(first_call)
        for _ in range(UNIQUE_TRIES):
            for start in range(0, len(missing), ROWS_PER_INSERT):
                chunk = missing[start : start + ROWS_PER_INSERT]
                literal = inserting.array_literal(chunk)
                parameters = {
                    **columns,
                    "args_list": inserting.array_literal(texts[first_call[key]] for key in chunk),
                    "unique_keys": literal,
                    "ids": [numbers[first_call[key]] for key in chunk],
                    **_from_now(options),
                }
                rows = place.rows(statement, parameters)
                created += len(rows)
                known.update((row[1], row[0]) for row in rows)
                if len(rows) < len(chunk):
                    found = place.rows(inserting.find_unique(), {"task": columns["task"], "unique_keys": literal})
                    known.update((row[1], row[0]) for row in found)
            missing = [key for key in missing if key not in known]
            if not missing:
                return [known[key] for key in keys], created
    raise _undecided(columns["task"], missing[0])


def _as_text(value: Any) -> str:
    """A column's value as PostgreSQL reads it."""
    if isinstance(value, str):
        return value
    if isinstance(value, timedelta):
        return jsonvalues.duration_text(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return inserting.array_literal(value) if isinstance(value, list) else str(value)
