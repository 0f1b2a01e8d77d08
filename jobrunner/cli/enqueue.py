"""Owns `jobrunner enqueue`: one job from the command line, or one for each line of standard input.

It must not write anything when one of the lines is wrong.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.arguments import parse_arguments, parse_lines
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.jobs import not_finished, warn_without_worker, was
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import JsonText, print_json, say
from jobrunner.cli.shared import shared
from jobrunner.cli.target import announce, checked_database, database_of, load_app
from jobrunner.cli.types import DURATION, INSTANT

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from jobrunner.app import JobRunner
    from jobrunner.database import Database
    from jobrunner.handle import Job
    from jobrunner.tasks import Task

_PRIORITY = (-32_768, 32_767)  # of a smallint
_ATTEMPTS = (1, 32_767)


@click.command(cls=Command)
@click.argument("task")
@click.argument("args", metavar="[JSON]", required=False)
@click.option("--stdin", "lines", is_flag=True, help="One job for each line of stdin, a JSON object; all or none.")
@click.option("--in", "delay", type=DURATION, metavar="DURATION", help="Not before this time has passed, such as 90s, 5m or 1h30m.")
@click.option("--at", "run_at", type=INSTANT, metavar="TIME", help="Not before this time, such as 2026-11-24T18:00 (local) or …T17:00Z.")
@click.option("--queue", metavar="NAME", help="Another queue than the task's.")
@click.option("--priority", type=click.IntRange(*_PRIORITY), metavar="NUMBER", help="Lower runs first.")
@click.option(
    "--max-attempts", type=click.IntRange(*_ATTEMPTS), metavar="NUMBER", help="Runs that may end in an error before the job fails."
)
@click.option("--ordering-key", metavar="TEXT", help="Jobs of a queue with the same key run one after the other.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="Not begun any more once this time has passed.")
@click.option("--unique", is_flag=True, help="Not when a live job of this task has the same arguments; then that one is given.")
@click.option("--unique-key", metavar="TEXT", help="Not when a live job of this task has this key.")
@click.option("--wait", "wait", is_flag=True, help="Wait for the job and print its result: exit 0 if it succeeded, 1 if not.")
@click.option("--timeout", type=DURATION, metavar="DURATION", help="With --wait: leave with 5 when it is not finished by then; it goes on.")
def enqueue(
    task: str,
    args: str | None,
    *,
    lines: bool,
    delay: timedelta | None,
    run_at: datetime | None,
    queue: str | None,
    priority: int | None,
    max_attempts: int | None,
    ordering_key: str | None,
    ttl: timedelta | None,
    unique: bool,
    unique_key: str | None,
    wait: bool,
    timeout: timedelta | None,
) -> None:
    """Write a job of TASK with the arguments in JSON, an object keyed by parameter name, and print its id.

    With --wait the result is printed instead, as JSON. Needs the app, because the task's policy and signature are there.
    """
    _refuse_contradictions(
        {"JSON": args is not None, "--stdin": lines},
        {"--in": delay is not None, "--at": run_at is not None},
        {"--unique": unique, "--unique-key": unique_key is not None},
        {"--stdin": lines, "--wait": wait},
    )
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    given = {
        "delay": delay,
        "run_at": run_at,
        "queue": queue,
        "priority": priority,
        "max_attempts": max_attempts,
        "ordering_key": ordering_key,
        "ttl": ttl,
        "unique": unique_key or unique or None,
    }
    # A transaction of its own: nobody would commit that of the app's default session.
    options: dict[str, Any] = {"session": None} | {name: value for name, value in given.items() if value is not None}
    data = parse_arguments(args) if args is not None else {}
    runner = load_app()
    home = runner.branch_of(queue or runner.registry[task].policy.queue)  # an unknown task is said before anything is connected
    _refuse_elsewhere(home.database_name)
    database = checked_database(announce(database_of(runner) if home is runner else home.database.dsn))
    if lines:
        _many(runner, task, options)
        return
    job = runner.enqueue(task, data, **options)
    if not job.created:
        say(f"job {job.id} with the same key is there already; no new one was written")
    if not wait:
        if shared().json:
            print_json({"id": job.id, "state": job.refresh().state, "created": job.created})
        else:
            click.echo(job.id)
        return
    say(f"job {job.id} is {job.refresh().state}; waiting for it")
    warn_without_worker(database)
    _wait(job, timeout, database)


def _many(runner: JobRunner, name: str, options: dict[str, Any]) -> None:
    task = runner.registry[name]
    calls = (_call(task, data, number) for number, data in parse_lines(sys.stdin))
    ids = task.options(**options).enqueue_many(calls)
    if shared().json:
        print_json({"ids": list(ids)})
        return
    for job_id in ids:
        click.echo(job_id)
    say(f"{len(ids)} job{'' if len(ids) == 1 else 's'} enqueued")


def _call(task: Task[..., Any], data: dict[str, Any], line: int) -> tuple[Any, ...] | dict[str, Any]:
    """One call as `enqueue_many` takes it: all by name, or all by position."""
    from jobrunner.errors import InvalidPayload
    from jobrunner.payload import decode_args

    try:
        args, kwargs = decode_args(task, data)
    except InvalidPayload as error:
        raise CommandError(Code.USAGE, f"line {line} of stdin: {error}", hint=error.hint) from error
    if not args:
        return kwargs
    bound = task.parameters.signature.bind(*args, **kwargs)
    if bound.kwargs:
        raise CommandError(
            Code.USAGE, f"{task.name}{task.parameters.signature} takes arguments by position and by name: --stdin cannot pass both"
        )
    return bound.args


def _wait(job: Job[Any], timeout: timedelta | None, database: Database) -> None:
    from jobrunner.inspection import get_job

    try:
        state = job.wait(timeout)
    except TimeoutError as error:
        raise not_finished(job.id, error) from error
    found = get_job(database, job.id)
    result = None if found.result is None else JsonText(found.result)
    if shared().json:
        print_json(
            {
                "id": job.id,
                "state": state,
                "created": job.created,
                "result": result,
                "error_type": found.job.error_type,
                "error": found.error,
            }
        )
    elif state == "succeeded":
        print_json(result)
    if state != "succeeded":
        why = f": {found.job.error_type}: {found.error or ''}".rstrip(": ") if found.job.error_type and state != "cancelled" else ""
        raise CommandError(Code.BAD, f"job {job.id} {was(state)}{why}", hint=f"see:   jobrunner jobs show {job.id}")


def _refuse_elsewhere(name: str) -> None:
    """A job goes where its queue lives: nobody would look for it elsewhere."""
    wanted = shared().database
    if wanted not in {None, name}:
        raise CommandError(Code.USAGE, f"--database {wanted}: the queue of this job lives in {name!r}", hint="leave --database out")


def _refuse_contradictions(*pairs: dict[str, bool]) -> None:
    for pair in pairs:
        if all(pair.values()):
            raise CommandError(Code.USAGE, f"{' and '.join(pair)} contradict each other: give one of the two")
