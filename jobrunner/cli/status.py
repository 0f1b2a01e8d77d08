"""Owns `jobrunner status`: queues, workers and what is wrong, on one screen. It must not ask workers anything."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import click

from jobrunner.cli import documents
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import Column, instant, on_terminal, print_json, print_table, printable, size, styled
from jobrunner.cli.shared import shared
from jobrunner.cli.target import is_replica, reading_database

if TYPE_CHECKING:
    from jobrunner.database import Database
    from jobrunner.inspection import QueueRow, Status, WorkerRow

SHOWN_WORKERS = 10  # that are not alive; the live ones are all shown


@click.command(cls=Command)
@click.option("--watch", type=click.FloatRange(min=0.2), metavar="SECONDS", help="Again and again, until Ctrl-C.")
def status(watch: float | None) -> None:
    """One screen: queues, workers, what is wrong. Exit 0, also when something is wrong."""
    database = reading_database()
    if watch is None:
        _once(database)
        return
    try:
        while True:
            if on_terminal():
                click.clear()
            _once(database)
            time.sleep(watch)
            if not on_terminal() and not shared().json:
                click.echo()
    except KeyboardInterrupt:
        return  # this is how a watch ends


def _once(database: Database) -> None:
    from jobrunner import inspection

    found = inspection.status(database)
    if is_replica(database):
        found = dataclasses.replace(found, pulse=dataclasses.replace(found.pulse, read_only=False))  # changes go to the primary
    workers = inspection.list_workers(database)
    if shared().json:
        print_json({"target": database.dsn.target, **documents.status(found, workers)})
        return
    pulse = found.pulse
    lost = f", {pulse.workers_lost} lost" if pulse.workers_lost else ""
    click.echo(
        f"{database.dsn.target}  schema {pulse.schema.current}  "
        f"workers {pulse.workers_alive} alive{lost}  running {pulse.running}/{pulse.slots}  "
        f"failed 1h {found.failed_last_hour}  {pulse.at.astimezone().isoformat(timespec='seconds')}"
    )
    _print_queues(found)
    _print_workers(workers, found)
    for problem in found.problems:
        click.echo()
        click.echo(f"{styled('!', 'red')} {printable(problem.text)}")
        if problem.hint:
            click.echo(f"  {printable(problem.hint)}")


def _print_queues(found: Status) -> None:
    click.echo()
    if not found.queues:
        click.echo("no queue: no job waits and no worker listens")
        return
    columns = (
        Column("QUEUE"), Column("READY", "right"), Column("OLDEST"), Column("RUNNING", "right"), Column("SCHEDULED", "right"),
        Column("RETRYING", "right"), Column("UNSERVED", "right"), Column("WORKERS", "right"), Column("SLOTS", "right"),
    )  # fmt: skip
    print_table(columns, [_queue_cells(row, found) for row in found.queues])


def _queue_cells(row: QueueRow, found: Status) -> list[object]:
    more = "" if row.exact else "+"
    waiting = [f"{number}{more}" for number in (row.ready, row.scheduled, row.retrying, row.unserved)]
    ready, scheduled, retrying, unserved = waiting
    return [
        row.queue,
        ready,
        instant(row.oldest_ready_at, found.pulse.at),
        row.running,
        scheduled,
        retrying,
        unserved,
        row.workers,
        row.slots,
    ]


def _print_workers(workers: tuple[WorkerRow, ...], found: Status) -> None:
    gone = [row for row in workers if row.state != "alive"]
    alive = [row for row in workers if row.state == "alive"]
    shown = alive + gone[:SHOWN_WORKERS]
    if not shown:
        return
    click.echo()
    columns = (
        Column("WORKER"), Column("STATE"), Column("KIND"), Column("POOL"), Column("BUSY", "right"), Column("SEEN"),
        Column("CLAIMED", "right"), Column("SUCCEEDED", "right"), Column("FAILED", "right"), Column("CRASHED", "right"),
        Column("MEMORY", "right"), Column("QUEUES", grow=True),
    )  # fmt: skip
    print_table(
        columns,
        [
            [
                row.name, row.state, row.kind, None if row.pool is None else f"{row.pool}/{row.pool_slot}", f"{row.running}/{row.slots}",
                instant(row.stopped_at or row.heartbeat_at, found.pulse.at), row.claimed_count, row.succeeded_count, row.failed_count,
                row.crashed_count, _bytes(row.rss_bytes if row.memory_bytes is None else row.memory_bytes), ",".join(row.queues),
            ]
            for row in shown
        ],
    )  # fmt: skip
    if len(gone) > SHOWN_WORKERS:
        click.echo(f"… and {len(gone) - SHOWN_WORKERS} that stopped earlier (--json has them)")
    _print_running(alive)


def _print_running(workers: list[WorkerRow]) -> None:
    """What each slot runs, as of its worker's last heartbeat."""
    if not any(row.running_jobs for row in workers):
        return
    click.echo()
    columns = (
        Column("WORKER"), Column("SLOT", "right"), Column("JOB", "right"), Column("TASK"), Column("ATTEMPT", "right"),
        Column("FOR", "right"), Column("MEMORY", "right"),
    )  # fmt: skip
    print_table(
        columns,
        [
            [row.name, job.slot, job.job_id, job.task, job.attempt, documents.duration_text(job.run), _bytes(job.memory)]
            for row in workers
            for job in row.running_jobs
        ],
    )


def _bytes(value: int | None) -> str | None:
    return None if value is None else size(value)
