"""Owns the server's own settings that matter to jobs: version, writes, durability, connections. It must not change any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.doctor.findings import Finding, Look, State, address, role

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION = sa.text("SELECT current_setting('server_version_num')::integer / 10000 AS major, current_setting('server_version') AS version")
# What reading set for its own transaction does not count: the session's begin does.
_READ_ONLY = sa.text("""
SELECT pg_is_in_recovery() AS standby, current_user AS role, current_database() AS database,
       (SELECT reset_val::boolean FROM pg_settings WHERE name = 'default_transaction_read_only') AS set
""")
_PRIMARY = sa.text("SELECT sender_host, sender_port FROM pg_stat_wal_receiver")
_DURABILITY = sa.text("SELECT name, setting, source FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')")
# The number of sessions is everybody's to see, who they are is not. Reserved ones are for superusers (and, from 16 on, for a role).
_CONNECTIONS = sa.text("""
SELECT sum(d.numbackends)::integer AS used,
       current_setting('max_connections')::integer AS most,
       current_setting('superuser_reserved_connections')::integer
           + coalesce(current_setting('reserved_connections', true)::integer, 0) AS kept
FROM pg_stat_database d
""")
_WHO = sa.text("SELECT current_user, current_database()")
_OF_ROLES = frozenset({"user", "database", "database user", "global"})
_COSTS = {
    "fsync": "a crash of the host may lose acknowledged jobs, and may leave the whole cluster unreadable",
    "full_page_writes": "a crash of the host may leave torn pages: rows and indexes that cannot be read",
    "synchronous_commit": "a crash of the server loses jobs acknowledged in its last fraction of a second; finished ones run again",
}
_MORE = 2  # times as many connections


def version(given: Look) -> Iterator[Finding]:
    """Whether the server is one that Jobrunner is tested on."""
    row = given.connection.execute(_VERSION).one()
    limits = given.limits
    if limits.oldest <= row.major <= limits.newest:
        yield Finding("server_version", "ok", f"PostgreSQL {row.version}", data={"version": row.version, "major": row.major})
        return
    text = f"PostgreSQL {row.version} is not one that Jobrunner is tested on ({limits.oldest} to {limits.newest})"
    fix = (
        "upgrade PostgreSQL: https://www.postgresql.org/docs/current/upgrading.html"
        if row.major < limits.oldest
        else "pip install -U jobrunner-pg"
    )
    yield Finding("server_version", "bad" if row.major < limits.oldest else "note", text, fix, {"version": row.version, "major": row.major})


def read_only(given: Look) -> Iterator[Finding]:
    """Whether jobs can be written here."""
    row = given.connection.execute(_READ_ONLY).one()
    data = {"standby": row.standby, "default_transaction_read_only": row.set}
    if row.standby:
        # Never the command that promotes it: beside a primary that lives, that splits the data in two.
        text = "this server is a standby: jobs cannot be enqueued or run here. Give the primary's address"
        primary = given.connection.execute(_PRIMARY).one_or_none()
        known = primary is not None and primary.sender_host
        where = address(row.role, primary.sender_host, primary.sender_port, row.database) if primary and known else "…"
        yield Finding("read_only", "bad", text, f"jobrunner doctor --dsn {where}", data)
    elif row.set:
        fix = f"ALTER ROLE {role(row.role)} IN DATABASE {role(row.database)} SET default_transaction_read_only = off;"
        text = f"transactions of {row.role!r} are read-only by default: jobs cannot be enqueued or run"
        yield Finding("read_only", "bad", text, fix, data)
    else:
        yield Finding("read_only", "ok", "the server takes writes", data=data)


def durability(given: Look) -> Iterator[Finding]:
    """What is switched off that a crash would need. Only synchronous_commit is a fair choice: it loses jobs, and breaks nothing."""
    settings = {row.name: row for row in given.connection.execute(_DURABILITY)}
    off = [name for name in _COSTS if settings[name].setting == "off"]
    for name in off:
        fix = _switch_on(given, name, settings[name].source)
        state: State = "note" if name == "synchronous_commit" else "bad"
        yield Finding("durability", state, f"{name} is off: {_COSTS[name]}", fix, {"setting": name, "value": "off"})
    if not off:
        yield Finding("durability", "ok", "fsync, full_page_writes and synchronous_commit are on: what is acknowledged is kept")


def _switch_on(given: Look, name: str, source: str) -> str:
    """Where it was switched off it has to be switched on."""
    if source in _OF_ROLES:
        user, database = given.connection.execute(_WHO).one()
        return f"ALTER ROLE {role(user)} IN DATABASE {role(database)} SET {name} = on;"
    if source == "client":
        return f"take {name} out of the address (options=…) or PGOPTIONS"
    if source == "command line":
        return f"start the server without: -c {name}=off"
    return f"ALTER SYSTEM SET {name} = on;\nSELECT pg_reload_conf();"


def connections(given: Look) -> Iterator[Finding]:
    """How many connections are taken of those that ordinary roles may open."""
    row = given.connection.execute(_CONNECTIONS).one()
    usable = row.most - row.kept
    share = row.used / usable
    data = {"used": row.used, "usable": usable, "max_connections": row.most, "share": round(share, 3)}
    if share < given.limits.connections_note:
        yield Finding("connections", "ok", f"{row.used} of {usable} connections are taken", data=data)
        return
    text = (
        f"{row.used} of {usable} connections are taken; when there is none left, workers and enqueues are refused. Fewer workers, smaller "
        "pools or a pooler help at once; more connections need a restart of the server"
    )
    state: State = "bad" if share >= given.limits.connections_bad else "note"
    yield Finding("connections", state, text, f"ALTER SYSTEM SET max_connections = {_MORE * row.most};", data)
