"""Owns opening connections of our own, and saying in words why one cannot be opened.

It must not retry (callers know how long to wait) nor print a password.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from jobrunner.errors import ConfigurationError, DatabaseUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import LiteralString

    from psycopg import Connection, Cursor
    from sqlalchemy.engine.interfaces import ExecutionContext

    from jobrunner.settings import Dsn

_ONLY_WHEN_ASKED = 2**31  # executions before psycopg prepares a statement by itself
CONNECT_TIMEOUT = 10  # seconds, for each address that the host name stands for
# A half-open connection (cable, NAT, failover) is noticed within about a quarter of a minute instead of hours.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}

_IS_IT_RUNNING = "try:   pg_isready {place}"
_AGAIN = "try:   the same again in a moment"
_PASSWORD = "try:   postgresql://user:password@host/database, or PGPASSWORD, or ~/.pgpass"  # noqa: S105  a text
_POOLER = "try:   fewer workers, a larger max_connections, or a pooler in front"

# What libpq, the server and PgBouncer say → the reason in our words, and what to do. The first that fits, so the narrow go first.
_REASONS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason, hint)
    for pattern, reason, hint in (
        ("password authentication failed|SASL authentication failed|wrong password", "password refused", _PASSWORD),
        ("no password supplied|no password was provided", "it asks for a password and the address has none", _PASSWORD),
        ("(peer|ident|certificate|GSSAPI|LDAP|PAM|RADIUS) authentication failed", "login refused: {0}", "see:   pg_hba.conf on the server"),
        ("role .* does not exist|no such user", "no such user", "try:   createuser {place} --login {user}"),
        ("role .* is not permitted to log in", "the user may not log in", "try:   ALTER ROLE {user} LOGIN"),
        ("database .* does not exist|no such database", "no such database", "try:   createdb {place} --owner {user} {database}"),
        (
            "permission denied for database",
            "the user may not connect to this database",
            "try:   GRANT CONNECT ON DATABASE {database} TO {user}",
        ),
        (r"no pg_hba\.conf entry.*no encryption", "the server lets nobody in without TLS", "try:   sslmode=require in the address"),
        (r"pg_hba\.conf", "the server does not let this host or user in", "see:   pg_hba.conf on the server"),
        ("too many (clients|connections)|connection slots are reserved|no more connections allowed", "too many connections", _POOLER),
        ("could not translate host name|not known|failed to resolve|No address associated", "unknown host", "try:   getent hosts {host}"),
        ("Connection refused", "connection refused", _IS_IT_RUNNING),
        ("No such file or directory", "no server on that socket", _IS_IT_RUNNING),
        ("No route to host|Network is unreachable", "no route to that host", _IS_IT_RUNNING),
        ("starting up|not yet accepting connections|in recovery mode", "the server is starting up", _AGAIN),
        ("shutting down", "the server is shutting down", _AGAIN),
        ("SSL|certificate|TLS", "TLS refused: {0}", "see:   sslmode and sslrootcert of the address"),
        ("timeout|timed out", "no answer in time", "see:   host, port, firewall;   pg_isready {place}"),
        ("closed the connection|reset by peer|broken pipe|EOF detected", "the connection was closed", _AGAIN),
    )
)

# Reasons that stay as they are however often one tries: somebody has to change something first.
_LASTING = re.compile(
    "password refused|it asks for a password|login refused|no such |the user may not|the server (lets nobody|does not let)|TLS refused"
)


def connect(dsn: Dsn, *, application_name: str = "jobrunner", **options: Any) -> Connection[Any]:
    """Open a connection in autocommit mode without prepared statements (they do not survive a transaction-mode pooler).

    Args:
        dsn: what it says about time-outs and keepalives goes before our own.
        application_name: how the session is called in pg_stat_activity.
        options: more of `psycopg.connect`; they go before everything else.

    Raises:
        DatabaseUnreachable: with the reason in words; never the password.
        ConfigurationError: libpq cannot read the address.
    """
    ours = {**patience(dsn), "application_name": application_name, "autocommit": True, "prepare_threshold": None}
    try:
        return psycopg.connect(dsn.url, **{**ours, **options})
    except psycopg.OperationalError as error:
        raise explain(error, dsn) from error


def allow_preparing(connection: Connection[Any], _record: object = None) -> None:
    """Statements that ask for it are prepared, on a direct connection only.

    Behind a pooler a prepared statement may be looked for in another server process. A pooler shows: the process that answers is
    not the one that the connection was told of.
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    if row is not None and row[0] == connection.info.backend_pid:
        connection.prepare_threshold = _ONLY_WHEN_ASKED


def prepare_if_asked(cursor: Cursor[Any], statement: LiteralString, parameters: Mapping[str, Any], context: ExecutionContext) -> bool:
    """For SQLAlchemy's `do_execute`: prepare a statement that has the execution option `prepare`, where `allow_preparing` lets it be.

    For what reads a row or two of many partitions: it costs more to plan than to run.
    """
    if not context.execution_options.get("prepare"):
        return False
    cursor.execute(statement, parameters, prepare=True)
    return True


def plan_once(connection: Connection[Any]) -> None:
    """Prepare each of our statements the first time and plan it for whatever parameters follow; on a direct connection only.

    Planning costs as much as running a statement for a few jobs. None of ours has a plan that depends on its parameters; tests hold
    both kinds of plan to the same indexes.
    """
    allow_preparing(connection)
    if connection.prepare_threshold is not None:  # direct, so that settings are ours alone
        connection.execute("SET plan_cache_mode = force_generic_plan")


def patience(dsn: Dsn) -> dict[str, int]:
    """How long to wait for an answer to a connection or on one, in libpq's words, as far as the address does not say it itself.

    Raises:
        ConfigurationError: libpq cannot read the address.
    """
    given = _read(dsn)
    return {name: value for name, value in {"connect_timeout": CONNECT_TIMEOUT, **_KEEPALIVES}.items() if name not in given}


def explain(error: BaseException, dsn: Dsn) -> DatabaseUnreachable:
    """What an OperationalError of psycopg or SQLAlchemy means for somebody who wanted to connect to `dsn`.

    The sentences are recognised in English. A server that speaks another language is quoted as it is.
    """
    original = getattr(error, "orig", None) or error
    known = _read(dsn)
    text = _without_password(str(original), known.get("password"))
    for pattern, reason, hint in _REASONS:
        if pattern.search(text):
            line = _telling_line(text, pattern)
            return DatabaseUnreachable(dsn.target, reason.format(line), origin=dsn.origin, hint=hint.format(**_words(known)))
    return DatabaseUnreachable(dsn.target, _telling_line(text) or type(original).__name__, origin=dsn.origin)


def may_pass(error: DatabaseUnreachable) -> bool:
    """Whether the database may be reached a moment later without anybody's doing: a restart, a failover, too many connections."""
    return _LASTING.match(error.reason) is None


def _read(dsn: Dsn) -> dict[str, str]:
    """The parts of the address. Refuses one whose password spills into other parts, so that none of them is printed."""
    try:
        known = {name: str(value) for name, value in conninfo_to_dict(dsn.url).items()}
    except psycopg.ProgrammingError:
        known = {"port": "unreadable"}
    host = known.get("host", "")
    spilled = "@" in host and not host.startswith(("@", "/"))  # a socket may have it in its path
    if spilled or not re.fullmatch(r"[\d,]*", known.get("port", "")):
        raise ConfigurationError(
            f"{dsn.origin} is not an address that PostgreSQL's client library can read",
            hint="try:   percent-encode : / ? # [ ] @ % in the password (%3A %2F %3F %23 %5B %5D %40 %25)",
        )
    return known


def _words(known: dict[str, str]) -> dict[str, str]:
    """What a hint may name, ready for a shell; never the password."""
    host, port = known.get("host") or known.get("hostaddr", ""), known.get("port", "")
    place = " ".join(f"{option} {shlex.quote(value)}" for option, value in (("-h", host), ("-p", port)) if value)
    user = known.get("user", "")
    return {
        "place": place,
        "host": shlex.quote(host),
        "user": shlex.quote(user or "NAME"),
        "database": shlex.quote(known.get("dbname") or user or "NAME"),
    }


def _telling_line(text: str, pattern: re.Pattern[str] | None = None) -> str:
    """The line that says why, without libpq's words about where: the one that fits, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fitting = [line for line in lines if pattern and pattern.search(line)] or lines[-1:]
    return re.sub(r"^(.*\bfailed: (?=\S)|connection is bad: )?(FATAL:\s+)?", "", fitting[0]) if fitting else ""


def _without_password(text: str, password: str | None) -> str:
    return text.replace(password, "***") if password else text
