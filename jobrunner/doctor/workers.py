"""Owns what is to be said about workers: nobody alive, fallen silent, lost, of several versions. It must not rescue anything."""

from __future__ import annotations

import shlex
import socket
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.doctor.findings import MOST, Finding, Look, State, several
from jobrunner.inspection import ago
from jobrunner.settings import DEFAULT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

# The waiting jobs' queues by the loose scan of the claim index: counting them all would take as long as the backlog is.
_ALIVE = sa.text("""
WITH RECURSIVE due AS (
    (SELECT queue FROM jobrunner.jobs WHERE state = 'queued' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT n.queue FROM due d CROSS JOIN LATERAL (
        SELECT j.queue FROM jobrunner.jobs j WHERE j.state = 'queued' AND j.queue > d.queue ORDER BY j.queue LIMIT 1
    ) n
)
SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots, now() - max(heartbeat_at) AS heard,
       (SELECT now() - max(heartbeat_at) FROM jobrunner.workers) AS last_heard,
       (SELECT now() - max(finished_at) FROM jobrunner.worker_runs WHERE kind = 'cron' AND pool IS NOT NULL) AS last_run,
       ARRAY(SELECT queue FROM due) AS queues
FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now()
""")
_SILENT = sa.text("""
SELECT w.id, w.name, w.host, w.pid, now() - w.heartbeat_at AS silent, now() - coalesce(w.stopped_at, w.lease_expires_at) AS over,
       w.stopped_at IS NOT NULL AS stopped,
       (SELECT count(*) FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running') AS jobs,
       (SELECT count(*) FROM jobrunner.workers a WHERE a.stopped_at IS NULL AND a.lease_expires_at > now()) AS others
FROM jobrunner.workers w
WHERE (w.stopped_at IS NULL AND w.lease_expires_at <= now())
   OR (w.stopped_at IS NOT NULL AND w.stopped_at < now() - interval '2 minutes'
       AND EXISTS (SELECT FROM jobrunner.jobs j WHERE j.worker_id = w.id AND j.state = 'running'))
ORDER BY w.lease_expires_at
""")
_LOST = sa.text("""
SELECT name, host, pid, now() - stopped_at AS since FROM jobrunner.workers
WHERE stopped_at > now() - interval '1 hour' AND last_exit = 'lost' ORDER BY stopped_at DESC
""")
_VERSIONS = sa.text("""
SELECT version, count(*) AS workers, min(started_at) AS since, array_agg(host || ' ' || pid ORDER BY host, pid) AS places
FROM jobrunner.workers WHERE stopped_at IS NULL AND lease_expires_at > now() GROUP BY version ORDER BY since
""")

_DRAIN = "jobrunner work --drain"


def alive(given: Look) -> Iterator[Finding]:
    """Whether anybody works; where cron starts workers, whether the last run is not long ago."""
    row = given.connection.execute(_ALIVE).one()
    data = {"workers": row.workers, "slots": row.slots, "queues_waiting": row.queues}
    if row.workers:
        text = f"{several(row.workers, 'worker is', 'workers are')} alive with {several(row.slots, 'slot')}; heard of {ago(row.heard)} ago"
        yield Finding("workers", "ok", text, data=data)
        return
    if row.last_run is not None and row.last_run <= given.limits.between_runs:
        text = f"no worker is alive at the moment; the last run of cron ended {ago(row.last_run)} ago"
        yield Finding("no_worker", "note", text, "jobrunner doctor --cron", data)
        return
    seen = f"; the last was heard of {ago(row.last_heard)} ago" if row.last_heard is not None else ""
    queues = f" {shlex.quote(','.join(sorted({DEFAULT_QUEUE, *row.queues})))}" if row.queues else ""
    waiting = f", and jobs wait in {_listed(row.queues)}" if row.queues else ""
    yield Finding("no_worker", "bad", f"no worker is alive{seen}{waiting}", f"jobrunner work{queues}", data)


def lost(given: Look) -> Iterator[Finding]:
    """Workers whose lease is over and whom nobody has rescued, and those that were lost lately."""
    silent = given.connection.execute(_SILENT).all()
    for row in silent[:MOST]:
        rescue = f"its rescue by others is due for {ago(row.over)}" if row.others else "nobody is alive to rescue it"
        what = f"stopped {ago(row.over)} ago" if row.stopped else f"has been silent for {ago(row.silent)}"
        held = f"{several(row.jobs, 'job is', 'jobs are')} still its, and " if row.jobs else ""
        text = f"worker {row.name} (pid {row.pid} on {row.host}) {what}; {held}{rescue}"
        data = {
            "worker": row.name, "host": row.host, "pid": row.pid, "jobs": row.jobs,
            "silent_seconds": round(row.silent.total_seconds(), 1), "over_seconds": round(row.over.total_seconds(), 1),
        }  # fmt: skip
        # A worker that drains gives the jobs of lost ones back first, runs what is due, and leaves. Those who rescue look at the
        # ones that stopped within the last minutes: an older one is put among them.
        fix = f"UPDATE jobrunner.workers SET stopped_at = now(), rescued_at = NULL WHERE id = {row.id};" if row.stopped else _DRAIN  # noqa: S608
        state: State = "bad" if row.over > given.limits.rescue or not row.others else "note"
        yield Finding("worker_silent", state, text, fix, data)
    gone = given.connection.execute(_LOST).all()
    if gone:
        last = gone[0]
        text = (
            f"{several(len(gone), 'worker was', 'workers were')} lost within the last hour, the last {ago(last.since)} ago (pid {last.pid} "
            f"on {last.host}); their jobs were given back. Was it killed, or out of memory?"
        )
        data = {"lost": len(gone), "host": last.host, "pid": last.pid}
        yield Finding("workers_lost", "note", text, "journalctl -k --since -1h --grep 'oom|killed process'", data)
    if not silent and not gone:
        yield Finding("lost_workers", "ok", "no worker has fallen silent within the last hour")


def versions(given: Look) -> Iterator[Finding]:
    """Whether the live workers are all of one version."""
    found = given.connection.execute(_VERSIONS).all()
    data = {"versions": {row.version: row.workers for row in found}}
    if len(found) > 1:
        newest = max(found, key=lambda row: _order(row.version))
        old = [place for row in found if row is not newest for place in row.places]
        what = ", ".join(f"{row.version} ({row.workers})" for row in found)
        text = f"live workers are of several versions: {what}. Fine during a deploy; afterwards the old ones should be restarted"
        yield Finding("several_versions", "note", text, "\n".join(map(_stop, old[:MOST])), data)
    elif found:
        yield Finding("versions", "ok", f"all live workers are of version {found[0].version}", data=data)
    else:
        yield Finding("versions", "ok", "no live worker to compare versions of", data=data)


def _stop(place: str) -> str:
    """SIGTERM lets the running jobs end; whoever supervises the worker starts it again."""
    host, _, pid = place.rpartition(" ")
    return f"kill -TERM {pid}" if host == socket.gethostname() else f"ssh {shlex.quote(host)} kill -TERM {pid}"


def _order(version: str) -> list[tuple[int, int | str]]:
    return [(1, int(part)) if part.isdigit() else (0, part) for part in version.replace("-", ".").replace("+", ".").split(".")]


def _listed(names: Any) -> str:
    shown = [f"{name!r}" for name in names[:MOST]]
    return ", ".join(shown) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
