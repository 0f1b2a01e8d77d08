"""Owns `jobrunner workers …`: who works now, and how those ended who worked before. It must not ask a worker anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobrunner.cli import documents
from jobrunner.cli.lazy import Command, Entry, LazyGroup
from jobrunner.cli.output import Column, instant, print_json, print_table, size
from jobrunner.cli.shared import shared
from jobrunner.cli.target import reading_database

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.inspection import WorkerRow, WorkerRunRow

_HERE = "jobrunner.cli.workers"
ENTRIES = {
    "list": Entry(_HERE, "list_", "List workers: those at work first, then those that stopped last."),
    "runs": Entry(_HERE, "runs", "List what has ended: cron runs above all, with why and what was left."),
}
MAX_STOPPED = 200  # the same as inspection's
MAX_RUNS = 1000  # the same as inspection's


@click.group(cls=LazyGroup, entries=ENTRIES)
def workers() -> None:
    """List workers, and the runs of those that have ended."""


@click.command("list", cls=Command)
@click.option(
    "--limit", type=click.IntRange(0, MAX_STOPPED), default=10, show_default=True, metavar="NUMBER", help="Of those that have stopped."
)
def list_(limit: int) -> None:
    """List workers: all that have not stopped, then those that stopped last."""
    from jobrunner import inspection

    database = reading_database()
    found = inspection.list_workers(database)
    stopped = [row for row in found if row.stopped_at is not None][:limit]
    shown = [row for row in found if row.stopped_at is None] + stopped
    at = inspection.pulse(database).at
    if shared().json:
        print_json({"items": [documents.worker(row) for row in shown], "at": at})
        return
    columns = (
        Column("ID", "right"), Column("WORKER"), Column("STATE"), Column("KIND"), Column("POOL"), Column("BUSY", "right"), Column("SEEN"),
        Column("EXIT"), Column("SUCCEEDED", "right"), Column("FAILED", "right"), Column("CRASHED", "right"), Column("MEMORY", "right"),
        Column("QUEUES", grow=True),
    )  # fmt: skip
    print_table(columns, [_worker_cells(row, at) for row in shown])


def _worker_cells(row: WorkerRow, at: datetime) -> list[object]:
    return [
        row.id, row.name, row.state, row.kind, _place(row), f"{row.running}/{row.slots}", instant(row.stopped_at or row.heartbeat_at, at),
        row.last_exit, row.succeeded_count, row.failed_count, row.crashed_count, None if row.rss_bytes is None else size(row.rss_bytes),
        ",".join(row.queues),
    ]  # fmt: skip


@click.command("runs", cls=Command)
@click.option("--pool", metavar="NAME", help="Only those of this pool.")
@click.option("--limit", type=click.IntRange(1, MAX_RUNS), default=50, show_default=True, metavar="NUMBER", help="Rows, the last first.")
def runs(pool: str | None, limit: int) -> None:
    """List workers that have ended, the last first: why, what they did, what they left."""
    from jobrunner import inspection

    database = reading_database()
    found = inspection.list_worker_runs(database, pool=pool, limit=limit)
    at = inspection.pulse(database).at
    if shared().json:
        print_json({"items": [documents.worker_run(row) for row in found], "at": at})
        return
    columns = (
        Column("ID", "right"), Column("WORKER"), Column("KIND"), Column("POOL"), Column("STARTED"), Column("TOOK", "right"),
        Column("REASON"), Column("EXIT", "right"), Column("SUCCEEDED", "right"), Column("FAILED", "right"), Column("CRASHED", "right"),
        Column("LEFT", "right"), Column("ERROR", grow=True),
    )  # fmt: skip
    print_table(columns, [_run_cells(row, at) for row in found])


def _run_cells(row: WorkerRunRow, at: datetime) -> list[object]:
    return [
        row.id, row.name, row.kind, _place(row), instant(row.started_at, at), documents.duration_text(row.run), row.reason, row.exit_code,
        row.succeeded_count, row.failed_count, row.crashed_count, row.left_count, row.error,
    ]  # fmt: skip


def _place(row: WorkerRow | WorkerRunRow) -> str | None:
    """The pool, with the slot when there is more than the first."""
    return row.pool if row.pool is None or row.pool_slot == 1 else f"{row.pool}/{row.pool_slot}"
