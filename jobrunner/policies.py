"""Owns the policy of a task (where, how often, within which limits it runs), how it is run, and the options of one enqueue.

It must not know functions, arguments or the database: a policy is the columns that differ from the table's defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from jobrunner import checks
from jobrunner.checks import CHECKS, RUN_CHECKS, checked
from jobrunner.errors import ConfigurationError
from jobrunner.settings import DEFAULT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterable

Backoff = Literal["exponential", "linear", "constant"]
Duration = float | str | timedelta
Keep = Duration | Mapping[str, Duration] | None  # for all states in which a job ends, or by state


class PolicyOptions(TypedDict, total=False):
    """The keywords that `@jobs.task(...)` and `options()` take: columns of the job's row."""

    queue: str
    priority: int
    max_attempts: int
    backoff: Backoff
    backoff_base: Duration
    backoff_cap: Duration
    backoff_jitter: float
    max_crashes: int
    time_limit: Duration | None
    soft_time_limit: Duration | None
    cpu_limit: Duration | None
    memory_limit: int | str | None
    memory_limit_on_retry: float | str | None
    output_limit: int | str | None
    max_processes: int | None
    tags: Iterable[str]
    unique: bool | str


class TaskOptions(PolicyOptions, total=False):
    """The keywords of `@jobs.task(...)` beside `name` and `transactional`."""

    capture_output: bool
    log_level: int | str | None
    keep: Keep


class EnqueueOptions(PolicyOptions, total=False):
    """The keywords of `task.options(...)`."""

    delay: Duration | None
    run_at: datetime | None
    ordering_key: str | None
    expires_at: datetime | None
    ttl: Duration | None
    meta: Mapping[str, Any] | None
    parent_id: int | None
    reference: tuple[str, str] | None
    session: Any
    connection: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every job of a task unless `options()` says otherwise.

    Attributes:
        queue: the name workers subscribe to.
        priority: lower runs first, like nice(1); -32,768 to 32,767.
        max_attempts: runs that may end in an error before the job fails; at least 1.
        backoff: how the pause between attempts grows.
        backoff_base: the first pause.
        backoff_cap: the longest pause.
        backoff_jitter: 0 to 1: the part of the pause that is random.
        max_crashes: deaths of its process after which the job is quarantined; at least 1.
        time_limit: wall time of one attempt, after which its processes are killed; None is unlimited, here and below.
        soft_time_limit: wall time after which `SoftTimeLimitExceeded` is raised in the task; at most `time_limit`.
        cpu_limit: CPU time of one attempt, all its processes together.
        memory_limit: resident bytes of one attempt, all its processes together; at least 1 MB.
        memory_limit_on_retry: how many times the memory limit an attempt gets after one that exceeded it.
        output_limit: bytes that one attempt may write to stdout and stderr.
        max_processes: processes of one attempt at the same time, the one that runs the task included; threads do not count.
        tags: words to filter by.
        unique: True: at most one live job with the same arguments; text: at most one live job with that key.
    """

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    max_attempts: int = 5
    backoff: Backoff = "exponential"
    backoff_base: timedelta = timedelta(seconds=5)
    backoff_cap: timedelta = timedelta(hours=1)
    backoff_jitter: float = 1.0
    max_crashes: int = 3
    time_limit: timedelta | None = None
    soft_time_limit: timedelta | None = None
    cpu_limit: timedelta | None = None
    memory_limit: int | None = None
    memory_limit_on_retry: float | None = None
    output_limit: int | None = None
    max_processes: int | None = None
    tags: tuple[str, ...] = ()
    unique: bool | str = False

    def with_values(self, given: Mapping[str, object], where: str) -> Policy:
        """The same policy with checked values in place of some.

        Raises:
            ConfigurationError: the message names `where` and the parameter.
        """
        values: dict[str, Any] = {}
        for name, value in given.items():
            check = CHECKS.get(name)
            if check is None and name in RUN_CHECKS:
                raise ConfigurationError(f"{where}({name}=…): this belongs to the task itself", hint=f"@jobs.task({name}=…)")
            if check is None:
                guess = difflib.get_close_matches(name, CHECKS, n=1)
                hint = f"did you mean {guess[0]}?" if guess else f"known: {', '.join(CHECKS)}"
                raise ConfigurationError(f"{where}({name}=…): there is no such parameter", hint=hint)
            values[name] = checked(name, check, value, where)
        if not given:
            return self
        policy = dataclasses.replace(self, **values)
        _check_together(policy, given, where)
        return policy

    def columns(self) -> dict[str, object]:
        """The columns of a job row that differ from the table's defaults, in table order."""
        return {
            name: list(value) if name == "tags" else value
            for name in COLUMNS
            if (value := getattr(self, name)) != getattr(DEFAULT_POLICY, name)
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """How the function of a task is run, and how long its finished jobs are kept; the code's business, not the row's.

    Attributes:
        transactional: the function gets a Session whose transaction also holds the end of the job.
        capture_output: what it prints goes into the job's log.
        log_level: records of `logging` of at least this level go into the job's log; None for no log.
        keep: pairs of a state (or `*`) and how long jobs of the task that ended in it are kept; None is forever.
    """

    transactional: bool = False
    capture_output: bool = False
    log_level: int | None = logging.INFO
    keep: tuple[tuple[str, timedelta | None], ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, object], where: str) -> Running:
        """From checked values. Raises ConfigurationError naming the parameter."""
        return cls(**{name: checked(name, RUN_CHECKS[name], value, where) for name, value in given.items()})


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Everything about one enqueue but its arguments.

    Attributes:
        policy: the task's, with what `options()` changed.
        columns: of the row, beside task, args, unique_key and run_at; only those that differ from the defaults; `meta` as JSON text.
        delay: pause before the first attempt, added to the database's clock.
        run_at: or the moment of the first attempt.
        session: a Session, scoped_session or function that gives one; DEFAULT_SESSION is the app's own default.
        connection: a SQLAlchemy Connection.
        reference: a space and a key in it, by which others find the job.
        ttl: pause after which the job is not begun any more, added to the database's clock.
    """

    policy: Policy
    columns: Mapping[str, object]
    delay: timedelta | None = None
    run_at: datetime | None = None
    session: Any = None
    connection: Any = None
    ttl: timedelta | None = None
    reference: tuple[str, str] | None = None

    def with_values(self, given: Mapping[str, Any]) -> Options:
        """The same options with checked values in place of some. Raises ConfigurationError naming the parameter."""
        # Only where to write or a reference, as for each job of a request: nothing of the row changes.
        policy, columns = (self.policy, self.columns) if given.keys() <= _PLACES else self._row_with(given)
        delay = checks.delay(given["delay"]) if "delay" in given else self.delay
        run_at = checks.run_at(given["run_at"]) if "run_at" in given else self.run_at
        if delay is not None and run_at is not None:
            raise ConfigurationError("options(delay=…, run_at=…): give one of the two")
        ttl = checks.ttl(given["ttl"]) if "ttl" in given else self.ttl
        if ttl is not None and "expires_at" in columns:
            raise ConfigurationError("options(expires_at=…, ttl=…): give one of the two")
        session, connection = given.get("session", self.session), given.get("connection", self.connection)
        if connection is not None and "session" not in given and session is DEFAULT_SESSION:
            session = None  # the connection named here wins over the app's default session
        if session is not None and connection is not None:
            raise ConfigurationError("options(session=…, connection=…): give one of the two")
        reference = checks.reference(given["reference"]) if "reference" in given else self.reference
        if reference is not None and policy.unique:
            raise ConfigurationError(
                f"options(reference={reference!r}): the task is unique, so that its enqueue may give a job that is there already",
                hint="a reference is unique by itself: options(unique=False, reference=…)",
            )
        return Options(policy, columns, delay, run_at, session, connection, ttl, reference)

    def _row_with(self, given: Mapping[str, Any]) -> tuple[Policy, Mapping[str, object]]:
        policy = self.policy.with_values({name: value for name, value in given.items() if name not in _OWN}, "options")
        kept = {name: self.columns[name] for name in _OWN_COLUMNS if name in self.columns}
        kept |= {name: check(given[name]) for name, check in _OWN_COLUMNS.items() if name in given}
        columns = {**policy.columns(), **{name: value for name, value in kept.items() if value is not None}}
        return policy, MappingProxyType(columns)


class _DefaultSession:
    def __repr__(self) -> str:
        return "the app's default session"


DEFAULT_SESSION = _DefaultSession()
DEFAULT_POLICY = Policy()
COLUMNS = tuple(field.name for field in dataclasses.fields(Policy) if field.name != "unique")
_PLACES = frozenset({"session", "connection", "reference"})
# Of one job and not of its task.
_OWN_COLUMNS: Mapping[str, Callable[[Any], object]] = {
    "meta": checks.meta, "parent_id": checks.parent_id, "ordering_key": checks.ordering_key, "expires_at": checks.expires_at,
}  # fmt: skip
_OWN = _PLACES | {"delay", "run_at", "ttl", *_OWN_COLUMNS}


def _check_together(policy: Policy, given: Mapping[str, object], where: str) -> None:
    """Refuse limits that make no sense beside each other."""
    soft, hard = policy.soft_time_limit, policy.time_limit
    if soft is not None and hard is not None and soft > hard:
        named = "soft_time_limit" if "soft_time_limit" in given else "time_limit"
        raise ConfigurationError(
            f"{where}({named}={given.get(named)!r}): soft_time_limit ({soft}) is above time_limit ({hard})",
            hint="the soft limit warns the task before the hard one kills it: make it the shorter of the two",
        )
    if policy.memory_limit_on_retry is not None and policy.memory_limit is None:
        raise ConfigurationError(
            f"{where}(memory_limit_on_retry={policy.memory_limit_on_retry:g}): there is no memory_limit",
            hint="give memory_limit as well: the limit of the first attempt",
        )
