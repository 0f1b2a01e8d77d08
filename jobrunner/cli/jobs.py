"""Owns `jobrunner jobs …`: the commands about jobs that exist. None of them imports the application.

It must not decide what is allowed in which state: the statements' guards do.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli import documents
from jobrunner.cli.failures import Code, CommandError, report
from jobrunner.cli.lazy import Command, Entry, LazyGroup
from jobrunner.cli.output import Column, instant, on_terminal, print_json, print_table, printable, say, shorten, warn
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, find_database, reading_database
from jobrunner.cli.types import DURATION, JOB_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from jobrunner.app import JobRunner
    from jobrunner.database import Database
    from jobrunner.handle import Job
    from jobrunner.inspection import JobRow, Page

_HERE = "jobrunner.cli.jobs"
ENTRIES = {
    "list": Entry(_HERE, "list_", "List jobs by filter, live ones first."),
    "show": Entry("jobrunner.cli.show", "show", "Everything about one job, and why it is not running."),
    "logs": Entry("jobrunner.cli.logs", "logs", "What the attempts of a job logged, also while it runs."),
    "wait": Entry(_HERE, "wait", "Wait until jobs are finished: exit 0 if all succeeded."),
    "retry": Entry(_HERE, "retry", "Run failed, cancelled or waiting jobs again, now."),
    "cancel": Entry(_HERE, "cancel", "Cancel waiting jobs, ask running ones to stop."),
}

EXCERPT = 120  # characters of arguments and errors in a pipe; `jobs show` and --json have all of what the list knows
MAX_LIMIT = 200  # of one page; the same as inspection's, known here so that --help need not import it


@click.group(cls=LazyGroup, entries=ENTRIES)
def jobs() -> None:
    """List, show, read the logs of, wait for, retry and cancel jobs."""


_NOT = "\x00"  # stands for the minus of a term while click looks for options: no argument of a program can hold it
_NEGATED = re.compile(r"-(?=[A-Za-z]+:)")


class FilterCommand(Command):
    """A command whose arguments may begin with a minus: `-queue:mail` is a term, not the options -q, -u, -e and so on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the minus of such arguments out of its sight."""
        return super().parse_args(ctx, [_NEGATED.sub(_NOT, arg, count=1) if _NEGATED.match(arg) else arg for arg in args])


def filter_text(terms: tuple[str, ...]) -> str:
    """The filter that the arguments of a FilterCommand are, as it was typed."""
    return " ".join(terms).replace(_NOT, "-")


@click.command("list", cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=50, show_default=True, metavar="NUMBER", help="Jobs on one page.")
@click.option("--cursor", metavar="TEXT", help="Where to go on: `next` or `prev` of an earlier answer.")
def list_(terms: tuple[str, ...], limit: int, cursor: str | None) -> None:
    """List jobs: live ones first, then finished ones, the newest first.

    FILTER is made of terms that must all hold, such as state:failed task:mail.* queue:mail,default -task:cleanup id:1,2.
    A minus in front means none of these. States: queued, scheduled, retrying, running, succeeded, failed, cancelled, quarantined.
    """
    from jobrunner.filters import parse

    wanted = parse(filter_text(terms))
    database = reading_database()
    from jobrunner.inspection import list_jobs

    page = list_jobs(database, filter=wanted, cursor=cursor, limit=limit)
    if shared().json:
        print_json(documents.page(page))
        return
    if not page.items:
        say("no job matches" if wanted else "there is no job yet")
        return
    print_table(_COLUMNS, [_cells(job, page) for job in page.items])
    if page.next:
        say(f"there are more: --cursor {page.next}")


_COLUMNS = (
    Column("ID", "right"), Column("TASK"), Column("QUEUE"), Column("STATE"), Column("ATTEMPT", "right"), Column("WHEN"),
    Column("RUN", "right"), Column("ARGS / ERROR", grow=True),
)  # fmt: skip


def _cells(job: JobRow, page: Page) -> list[object]:
    when = job.finished_at or job.started_at or job.run_at
    error = f"{job.error_type}: {job.error or ''}".rstrip(": ") if job.error_type and job.state != "succeeded" else None
    run = documents.duration_text(job.run)
    text = error or job.args_excerpt
    return [
        job.id,
        job.task,
        job.queue,
        job.state,
        f"{job.attempt}/{job.max_attempts}",
        instant(when, page.at),
        run,
        shorten(text, EXCERPT),
    ]


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, type=JOB_ID, metavar="ID...")
@click.option(
    "--timeout", type=DURATION, metavar="DURATION", help="Leave with 5 when a job is not finished by then.  [default: wait for ever]"
)
def wait(ids: tuple[int, ...], timeout: timedelta | None) -> None:
    """Wait until jobs are finished and print their states: exit 0 if all succeeded, 1 if one did not, 5 at the timeout."""
    runner = _runner()
    handle = runner.job
    warn_without_worker(runner.database)
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    states: list[tuple[int, str]] = []
    for job_id in ids:
        try:
            job = handle(job_id)
            state = job.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            _print_states(states)
            raise not_finished(job_id, error) from error
        states.append((job_id, state))
    _print_states(states)
    bad = [f"job {job_id} {was(state)}" for job_id, state in states if state != "succeeded"]
    if bad:
        first = next(job_id for job_id, state in states if state != "succeeded")
        raise CommandError(Code.BAD, ", ".join(bad), hint=f"see:   jobrunner jobs show {first}")


def not_finished(job_id: int, error: TimeoutError) -> CommandError:
    """The refusal to wait any longer."""
    return CommandError(Code.BUSY, str(error), hint=f"see:   jobrunner jobs show {job_id}     (says why it is not running)")


def was(state: str) -> str:
    """A final state as a predicate: `failed`, `was cancelled`."""
    return state if state in ("failed", "succeeded") else f"was {state}"


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, type=JOB_ID, metavar="ID...")
def retry(ids: tuple[int, ...]) -> None:
    """Run failed, cancelled or quarantined jobs again under the same id; make waiting ones due now."""

    def again(job: Job[Any]) -> str:
        job.retry()
        return "queued: due now"

    _conclude(*_each(_runner(write=True), ids, again))


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, type=JOB_ID, metavar="ID...")
@click.option("--wait", "waits", is_flag=True, help="Until the running ones have ended: exit 0 if all are cancelled, 1 if not.")
@click.option("--timeout", type=DURATION, metavar="DURATION", help="With --wait: leave with 5 then.  [default: wait for ever]")
def cancel(ids: tuple[int, ...], *, waits: bool, timeout: timedelta | None) -> None:
    """Cancel waiting jobs; ask running ones to stop.

    A running job is told within a second (`should_stop()`), 2 s later an exception is raised in it, a second after that it is ended by
    force.
    """
    if timeout is not None and not waits:
        raise CommandError(Code.USAGE, "--timeout is for how long --wait waits: give both")
    texts = {"cancelled": "cancelled", "requested": "running: asked to stop"}
    runner = _runner(write=True)
    answers, code = _each(runner, ids, lambda job: texts[job.cancel()])
    if waits:
        code = _await_ends(runner, answers, timeout) or code
    _conclude(answers, code)


def _await_ends(runner: JobRunner, answers: list[dict[str, Any]], timeout: timedelta | None) -> int:
    """Wait for the jobs that were asked to stop and put their final states in place. Returns the exit code."""
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    code = 0
    for answer in answers:
        if answer.get("state") != "running":
            continue
        try:
            answer["state"] = runner.job(answer["id"]).wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            code = report(not_finished(answer["id"], error), shared())
            continue
        if answer["state"] != "cancelled":  # it was faster, or went back to the queue with its worker
            code = code or Code.BAD
        if not shared().json:
            say(f"job {answer['id']} {was(answer['state'])}")
    return code


def _each(runner: JobRunner, ids: Iterable[int], verb: Callable[[Job[Any]], str]) -> tuple[list[dict[str, Any]], int]:
    """Do it to every job, whatever becomes of the others. Returns what became of each, and the exit code of the first one refused."""
    from jobrunner.errors import JobrunnerError

    answers: list[dict[str, Any]] = []
    code = 0
    for job_id in ids:
        try:
            answer = verb(runner.job(job_id))
        except JobrunnerError as error:
            code = code or report(error, shared())
            answers.append({"id": job_id, "done": False, "error": str(error)})
        else:
            answers.append({"id": job_id, "done": True, "state": answer.partition(":")[0]})
            if not shared().json:
                say(f"job {job_id} is {answer}")
    return answers, code


def _conclude(answers: list[dict[str, Any]], code: int) -> None:
    if shared().json:
        print_json({"jobs": answers})
    if code:
        click.get_current_context().exit(code)


def warn_without_worker(database: Database) -> None:
    """Somebody who waits for a job wants to know that nothing can run it."""
    from jobrunner.inspection import pulse

    if not pulse(database).workers_alive:
        warn("no worker is alive: what waits goes on waiting until one is started (jobrunner work)")


def _runner(*, write: bool = False) -> JobRunner:
    dsn = find_database()
    if write:
        announce(dsn)
    checked_database(dsn).close()
    from jobrunner.app import JobRunner

    runner = JobRunner()
    runner.use_dsn(dsn.url, dsn.origin)
    return runner


def _print_states(states: list[tuple[int, str]]) -> None:
    if shared().json:
        print_json({"jobs": [{"id": job_id, "state": state} for job_id, state in states]})
        return
    for job_id, state in states:
        click.echo(f"{job_id}  {click.style(printable(state), fg='green' if state == 'succeeded' else 'red') if on_terminal() else state}")
