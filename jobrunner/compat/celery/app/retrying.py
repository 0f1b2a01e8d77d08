"""Owns when a task is tried again: `self.retry`, `autoretry_for` and its arithmetic; and `task_annotations`, which may change it.

It must not write: the tracer puts a retry into the job's row.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from jobrunner.compat.celery.exceptions import Ignore, Retry
from jobrunner.compat.celery.settings import symbol_by_name

if TYPE_CHECKING:
    from jobrunner.compat.celery.app.context import Context
    from jobrunner.compat.celery.app.task import Task


def get_exponential_backoff_interval(factor: int, retries: int, maximum: int, full_jitter: Any = False) -> int:  # noqa: FBT002
    """Seconds until the next attempt: `min(maximum, factor * 2 ** retries)`, or a random whole number from 0 to that."""
    countdown: int = min(maximum, factor * 2**retries)
    if full_jitter:
        countdown = random.randrange(countdown + 1)  # noqa: S311  spreads attempts, guards nothing
    return max(0, countdown)


def add_autoretry(task: Any, options: Mapping[str, Any]) -> None:
    """Wrap `task.run` so that the exceptions of `autoretry_for` become retries."""

    def of(name: str) -> Any:
        return options.get(name, getattr(task, name))

    wanted, unwanted = tuple(of("autoretry_for")), tuple(of("dont_autoretry_for"))
    if not wanted or hasattr(task, "_orig_run"):
        return
    further = of("retry_kwargs")
    backoff, longest, jitter = float(of("retry_backoff")), int(of("retry_backoff_max")), of("retry_jitter")

    @functools.wraps(task.run)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return task._orig_run(*args, **kwargs)  # noqa: SLF001  where Celery keeps it
        except (Ignore, Retry):
            raise
        except unwanted:
            raise
        except wanted as error:
            arguments = dict(further)
            if backoff:
                arguments["countdown"] = get_exponential_backoff_interval(
                    factor=int(max(1.0, backoff)), retries=task.request.retries, maximum=longest, full_jitter=jitter
                )
            if hasattr(task, "override_max_retries"):
                arguments["max_retries"] = task.override_max_retries
            asked = task.retry(exc=error, **arguments)
            if hasattr(task, "override_max_retries"):
                del task.override_max_retries
            raise asked from error

    task._orig_run, task.run = task.run, run  # noqa: SLF001


def retry(
    task: Task,
    args: Any,
    kwargs: Any,
    exc: BaseException | None,
    *,
    throw: bool,
    eta: Any,
    countdown: float | None,
    max_retries: int | None,
    options: dict[str, Any],
) -> Retry:
    """What `Task.retry` does."""
    request = task.request
    retries = request.retries + 1
    if max_retries is not None:
        task.override_max_retries = max_retries  # type: ignore[attr-defined]  # where Celery keeps it for the automatic retry
    most = task.max_retries if max_retries is None else max_retries
    if request.called_directly:
        _raise(exc or Retry("Task can be retried", None))
    if not eta and countdown is None:
        countdown = task.default_retry_delay
    args, kwargs = _merged(task, request, args, kwargs)
    signature = task.signature_from_request(request, args, kwargs, countdown=countdown, eta=eta, retries=retries, **options)
    if most is not None and retries > most:
        if exc is not None:
            _raise(exc)
        raise task.MaxRetriesExceededError(
            f"Can't retry {task.name}[{request.id}] args:{signature.args} kwargs:{signature.kwargs}",
            task_args=signature.args,
            task_kwargs=signature.kwargs,
        )
    asked = Retry(exc=exc, when=eta or countdown, is_eager=request.is_eager, sig=signature)
    if throw:
        raise asked
    request._retry = asked  # noqa: SLF001  the tracer looks there when the body has ended
    return asked


def _raise(error: BaseException) -> NoReturn:
    """Raise it with the exception that is being handled as its context; that one itself, when it is the same."""
    current = sys.exc_info()[1]
    if current is None:
        raise error
    if current is error:
        raise error
    raise error from current


def _merged(task: Task, request: Context, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Other positional or other named arguments alone take the place of those of the same parameters."""
    if (args is None or kwargs is not None or not request.kwargs) and (kwargs is None or args is not None or not request.args):
        return args, kwargs
    try:
        signature = inspect.signature(task.run)
    except (TypeError, ValueError):
        return args, kwargs
    by_either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if args is not None:
        positional = [one for one in signature.parameters.values() if one.kind in {inspect.Parameter.POSITIONAL_ONLY, by_either}]
        taken = {one.name for one in positional[: len(args)] if one.kind is by_either}
        return args, {name: value for name, value in request.kwargs.items() if name not in taken}
    try:
        bound = signature.bind_partial(*request.args)
    except TypeError:
        return args, kwargs
    named = dict(kwargs or {})
    for name in list(named):
        if name in bound.arguments and signature.parameters[name].kind is by_either:
            bound.arguments[name] = named.pop(name)
    return bound.args, {**bound.kwargs, **named}


def annotations_of(given: Any, task: Any) -> Iterator[Mapping[str, Any]]:
    """What `task_annotations` says about a task: a mapping by name (`*` for all), an object with `annotate`, or a list of them."""
    if given is None:
        return
    for one in given if isinstance(given, (list, tuple)) else (given,):
        source = symbol_by_name(one)
        source = source() if isinstance(source, type) else source
        if isinstance(source, Mapping):
            found = [source.get("*"), source.get(task.name)]
        else:
            ask_any, ask = getattr(source, "annotate_any", None), getattr(source, "annotate", None)
            found = [ask_any() if ask_any is not None else None, ask(task) if ask is not None else None]
        yield from (annotation for annotation in found if annotation)
