"""Owns `jobrunner run`: a task in this process, now, without a job.

It must not write a row nor touch the database, but for what the task itself does.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.arguments import parse_arguments
from jobrunner.cli.failures import Code, CommandError
from jobrunner.cli.lazy import Command
from jobrunner.cli.output import JsonText, print_json, say
from jobrunner.cli.shared import shared
from jobrunner.cli.target import load_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from jobrunner.app import JobRunner
    from jobrunner.control import JobControl
    from jobrunner.tasks import Task


@click.command(cls=Command)
@click.argument("task")
@click.argument("args", metavar="[JSON]", required=False)
@click.option("--pdb", is_flag=True, help="Open the debugger where the task raises.")
def run(task: str, args: str | None, *, pdb: bool) -> None:
    """Run TASK here and now, with the arguments in JSON, and print what it returns as JSON.

    For debugging: no job is written, there are no retries and no limits. `current_job()` works and has id 0.
    """
    data = parse_arguments(args) if args is not None else {}
    runner = load_app()
    registered = runner.registry[task]
    with contextlib.redirect_stdout(sys.stderr) if shared().json else contextlib.nullcontext():
        result = _result(runner, registered, data, pdb=pdb)
    print_json(JsonText(result))


def _result(runner: JobRunner, task: Task[..., Any], data: dict[str, Any], *, pdb: bool) -> str:
    """What the task returned, as the JSON that its job would keep."""
    from jobrunner.control import JobControl
    from jobrunner.current import JobContext, running
    from jobrunner.payload import decode_args, encode_result

    args, kwargs = decode_args(task, data)
    context = JobContext(id=0, task=task.name, queue=task.policy.queue, attempt=1, max_attempts=task.policy.max_attempts, lease=0)
    with runner.execution_context(), running(context):
        try:
            if task.running.transactional:
                from jobrunner.worker import transactions

                value = transactions.rehearse(runner, context, lambda session: task(*args, session=session, **kwargs))
            else:
                value = task(*args, **kwargs)
            if task.is_async:
                value = _awaited(value)
        except JobControl as control:
            raise _controlled(task, control) from control
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _failed(task, error, pdb=pdb) from error
    return encode_result(value, runner.max_result_bytes)


def _awaited(value: Any) -> Any:
    import asyncio

    return asyncio.run(value)


def _controlled(task: Task[..., Any], control: JobControl) -> CommandError:
    """What a worker would have done; `Snooze` and `Cancel` are no results either, so that a script does not take them for one."""
    from jobrunner.control import Cancel, Fail, Retry, Snooze

    match control:
        case Retry():
            after = f"after {control.delay}" if control.delay is not None else "after its backoff"
            what = f"asked to be retried {after}"
        case Snooze():
            what = f"asked to be run again after {control.delay}"
        case Cancel():
            what = "asked to be cancelled"
        case Fail():
            what = "asked to fail for good"
        case _:
            what = f"raised {type(control).__name__}"
    message = getattr(control, "message", "")
    return CommandError(Code.BAD, f"task {task.name!r} {what}{f': {message}' if message else ''}")


def _failed(task: Task[..., Any], error: BaseException, *, pdb: bool) -> CommandError:
    """The task's own traceback, without our frames; it is what the command was called for, so it needs no -v."""
    import traceback

    frames = _own_frames(error.__traceback__)
    if not shared().quiet:
        click.echo("".join(traceback.TracebackException(type(error), error, frames).format()), err=True, nl=False)
    if pdb:
        import pdb as debugger  # noqa: T100  what --pdb asks for

        say("opening the debugger at the place of the error; leave with q")
        debugger.post_mortem(frames)
    return CommandError(Code.BAD, f"task {task.name!r} raised {type(error).__name__}")


def _own_frames(frames: TracebackType | None) -> TracebackType | None:
    inner = frames
    for found in _walk(frames):
        if "jobrunner/" not in found.tb_frame.f_code.co_filename.replace("\\", "/"):
            inner = found
            break
    return inner or frames


def _walk(frames: TracebackType | None) -> Iterator[TracebackType]:
    while frames is not None:
        yield frames
        frames = frames.tb_next
