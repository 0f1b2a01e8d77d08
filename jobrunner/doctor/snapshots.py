"""Owns who holds back the horizon: sessions, prepared transactions, replication slots, standbys; and what ends each of them.

It must not end any. Dead rows that are younger than the oldest snapshot cannot be removed, and every claim of jobs that starts at the
begin of its index passes over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.doctor.findings import MOST, Finding, Look, State, megabytes, role, several, value
from jobrunner.doctor.queries import shortened
from jobrunner.inspection import ago

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

# Only sessions of this database count, and those of VACUUM do not: the server leaves them out when it decides what may go. A session
# that has written but waits for its next statement has no snapshot; its own transaction id holds as well.
_SESSIONS = sa.text("""
SELECT a.pid, a.usename, a.application_name, a.state, a.query, clock_timestamp() - coalesce(a.xact_start, a.backend_start) AS held,
       greatest(age(a.backend_xmin), age(a.backend_xid)) AS back
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.leader_pid IS NULL
  AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
  AND a.backend_type NOT IN ('walsender', 'autovacuum worker')
  AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
ORDER BY back DESC
""")
_PREPARED = sa.text("""
SELECT gid, owner, clock_timestamp() - prepared AS held, age(transaction) AS back
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY back DESC
""")
_SLOTS = sa.text("""
SELECT s.slot_name, s.slot_type, s.active, s.active_pid, age(s.xmin) AS back, age(s.catalog_xmin) AS catalog_back,
       r.application_name, host(r.client_addr) AS address,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                       s.restart_lsn)::bigint AS wal
FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
ORDER BY coalesce(age(s.xmin), age(s.catalog_xmin)) DESC
""")
# Standbys without a slot; the feedback of one with a slot is the slot's xmin.
_STANDBYS = sa.text("""
SELECT pid, application_name, host(client_addr) AS address, age(backend_xmin) AS back
FROM pg_stat_replication WHERE backend_xmin IS NOT NULL ORDER BY back DESC
""")
# By name: to_regclass is refused to who may not use the schema.
_DEAD = sa.text("SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_all_tables WHERE schemaname = 'jobrunner' AND relname = 'jobs'")
_SEES = sa.text("SELECT current_user, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")


def look(given: Look) -> Iterator[Finding]:
    """Each holder that is old, the oldest of each kind first."""
    user, sees_all = given.connection.execute(_SEES).one()
    dead = given.connection.scalar(_DEAD) or 0
    found = [*_sessions(given, dead), *_prepared(given, dead), *_slots(given, dead), *_standbys(given, dead)]
    if not sees_all:
        text = f"only snapshots of sessions of {user!r} itself can be seen; those of others are hidden from it"
        yield Finding("snapshots_hidden", "note", text, f"GRANT pg_monitor TO {role(user)};", {"user": user})
    elif not found:
        text = f"nobody holds a snapshot for longer than {ago(given.limits.snapshot_note)}; jobrunner.jobs has {several(dead, 'dead row')}"
        found = [Finding("snapshots", "ok", text, data={"dead_rows": dead})]
    yield from found


def _sessions(given: Look, dead: int) -> Iterator[Finding]:
    for row in given.connection.execute(_SESSIONS).all()[:MOST]:
        state = _severity(given, dead, row.held, row.back)
        if state is not None and row.back >= given.limits.back_least:
            query = shortened(row.query)
            who = f"user {row.usename}, {row.application_name or 'no application name'}, {row.state}"
            text = f"session {row.pid} ({who}) has held a snapshot for {ago(row.held)}, {_effect(row.back, dead)}"
            facts = {"pid": row.pid, "user": row.usename, "application": row.application_name, "activity": row.state, "query": query}
            data = {**facts, **_figures(row, dead)}
            yield Finding("snapshot_session", state, f"{text}. Query: {query or '-'}", f"select pg_terminate_backend({row.pid});", data)


def _prepared(given: Look, dead: int) -> Iterator[Finding]:
    for row in given.connection.execute(_PREPARED).all()[:MOST]:
        # One that is left over has nobody who would end it: it survives sessions and restarts, with its locks.
        state = _severity(given, dead, row.held, row.back) and "bad"
        if state is not None:
            text = f"the prepared transaction {row.gid!r} of user {row.owner} waits for {ago(row.held)}, {_effect(row.back, dead)}"
            data = {"gid": row.gid, "user": row.owner, **_figures(row, dead)}
            yield Finding("snapshot_prepared", state, text, f"rollback prepared {value(row.gid)};", data)


def _slots(given: Look, dead: int) -> Iterator[Finding]:
    for row in given.connection.execute(_SLOTS).all()[:MOST]:
        reader = f"read by {row.application_name} at {row.address or 'a local socket'}" if row.active else "which nobody reads"
        data = {
            "slot": row.slot_name, "type": row.slot_type, "active": row.active, "pid": row.active_pid,
            "back": row.back, "catalog_back": row.catalog_back, "wal_bytes": row.wal, "dead_rows": dead,
        }  # fmt: skip
        drop = f"select pg_drop_replication_slot({value(row.slot_name)});"
        if row.back is not None:
            state = _severity(given, dead, None, row.back) or (None if row.active else "note")
            text = f"the replication slot {row.slot_name!r}, {reader}, holds a snapshot, {_effect(row.back, dead)}"
            fix = _on_the_standby(row) if row.active else drop
        else:
            state = _of_catalogs(given, row)
            text = (
                f"the logical slot {row.slot_name!r}, {reader}, keeps {megabytes(row.wal or 0)} of WAL and dead rows of the system "
                f"catalogs, {several(row.catalog_back, 'transaction')} back; rows of jobs are not held"
            )
            fix = f"select * from pg_stat_replication where pid = {row.active_pid:d};" if row.active else drop  # noqa: S608  a number
        if state is not None:
            yield Finding("snapshot_slot", state, text, fix, data)


def _standbys(given: Look, dead: int) -> Iterator[Finding]:
    for row in given.connection.execute(_STANDBYS).all()[:MOST]:
        state = _severity(given, dead, None, row.back)
        if state is not None:
            at = row.address or "a local socket"
            text = f"a query on the standby {row.application_name} at {at} holds a snapshot here, {_effect(row.back, dead)}"
            data = {"pid": row.pid, "application": row.application_name, "address": row.address, "back": row.back, "dead_rows": dead}
            yield Finding("snapshot_standby", state, text, _on_the_standby(row), data)


def _severity(given: Look, dead: int, held: timedelta | None, back: int) -> State | None:
    """None for what is young. What is no longer young is bad as soon as so many rows are dead that claims get slow."""
    limits = given.limits
    if (held is not None and held >= limits.snapshot_bad) or back >= limits.back_bad:
        return "bad"
    if (held is not None and held >= limits.snapshot_note) or back >= limits.back_note:
        return "bad" if dead >= limits.dead_note else "note"
    return None


def _of_catalogs(given: Look, row: Any) -> State | None:
    if row.active:
        return "note" if row.catalog_back >= given.limits.back_bad else None
    return "bad" if (row.wal or 0) >= given.limits.wal_bad or row.catalog_back >= given.limits.back_bad else "note"


def _effect(back: int, dead: int) -> str:
    held = f"jobrunner.jobs has {several(dead, 'dead row')}, and none that died since can be removed"
    return f"{several(back, 'transaction')} back: {held}; claims pass over them"


def _figures(row: Any, dead: int) -> dict[str, Any]:
    return {"held_seconds": round(row.held.total_seconds(), 3), "back": row.back, "dead_rows": dead}


def _on_the_standby(row: Any) -> str:
    """Ending the connection would not help: it comes back and says the same."""
    where = f"-- on the standby {row.application_name} ({row.address or 'local socket'}), or end its oldest transaction there:"
    return f"{where}\nALTER SYSTEM SET hot_standby_feedback = off;\nSELECT pg_reload_conf();"
