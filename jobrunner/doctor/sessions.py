"""Owns what lies between here and the server, and the role's time-outs. It must not set any, nor leave anything in a pooled session."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from jobrunner.doctor.findings import Finding, Look, address, role
from jobrunner.inspection import ago

if TYPE_CHECKING:
    from collections.abc import Iterator

_ANSWERS = sa.text("SELECT pg_backend_pid()")
_WHO = sa.text("SELECT current_user, current_database()")
_ADDRESS = sa.text("""
SELECT host(inet_server_addr()) AS address, current_setting('port') AS port, current_user AS user, current_database() AS database,
       CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN current_setting('unix_socket_directories') END AS sockets
""")
# One that the server does not know is not there.
_TIMEOUTS = sa.text("""
SELECT name, CAST(setting AS bigint), source FROM pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')
""")


class _Effect(NamedTuple):
    text: str
    idle: bool = False


_EFFECTS = {
    "statement_timeout": _Effect("making partitions, rescuing and writing a large batch of outcomes are broken off and begin again"),
    "lock_timeout": _Effect("statements of workers that meet a lock are refused instead of waiting for it"),
    "idle_in_transaction_session_timeout": _Effect("a transactional task that computes for longer loses its transaction and is run again"),
    "idle_session_timeout": _Effect("connections of workers and pools that have nothing to do are cut", idle=True),
    "transaction_timeout": _Effect("a transactional task that takes longer is rolled back and run again"),
}


def pooler(given: Look) -> Iterator[Finding]:
    """Whether the process that answers is the one that the connection was told of: a pooler tells of itself."""
    driver: Any = given.connection.connection.dbapi_connection
    told, answers = driver.info.backend_pid, given.connection.scalar(_ANSWERS)
    data = {"pooled": told != answers}
    if told == answers:
        yield Finding("pooler", "ok", "no pooler between here and the server", data=data)
        return
    text = (
        "a pooler stands between here and the server. In its transaction mode wake-ups (LISTEN) do not arrive, so that a new job waits for "
        "a poll, 1 s at most, and statements are not prepared; everything else works. For fast pickup give workers the server's own address"
    )
    yield Finding("pooler", "note", text, _directly(given), data)


def _directly(given: Look) -> str:
    """The address that the pooler uses, as the server sees it; without a password."""
    row = given.connection.execute(_ADDRESS).one()
    host = row.address or (row.sockets or "").partition(",")[0].strip(' "')
    if not host:
        return "jobrunner work --dsn …     (the server's own address; GRANT pg_read_all_settings, and it is printed here)"
    return f"jobrunner work --dsn {address(row.user, host, row.port, row.database)}"


def timeouts(given: Look) -> Iterator[Finding]:
    """Time-outs of this role that would break what workers do. Run it as the workers' role."""
    user, database = given.connection.execute(_WHO).one()
    given.connection.rollback()  # of which the check's own time-outs are: outside of it the session's are seen
    found = []
    for name, milliseconds, source in given.connection.execute(_TIMEOUTS):
        effect, limit = _EFFECTS[name], timedelta(milliseconds=milliseconds)
        note, bad = (
            (given.limits.idle_note, given.limits.idle_bad) if effect.idle else (given.limits.patience_note, given.limits.patience_bad)
        )
        if milliseconds and limit < note:
            fix = f"ALTER ROLE {role(user)} IN DATABASE {role(database)} SET {name} = 0;"
            if source == "client":
                fix = f"take {name} out of the address (options=…) or PGOPTIONS"
            data = {"setting": name, "milliseconds": milliseconds, "source": source, "role": user}
            text = f"{name} of role {user!r} is {ago(limit)}: {effect.text}"
            found.append(Finding("role_timeout", "bad" if limit < bad else "note", text, fix, data))
    yield from found or [
        Finding("timeouts", "ok", f"no time-out of role {user!r} is short enough to break what workers do", data={"role": user})
    ]
