"""Owns the tasks of an app by name, and what is read off a function: its default name, its parameters, the check of a call.

It must not run a task nor know the database.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from typing import TYPE_CHECKING, Any

from jobrunner.compat.celery.exceptions import DuplicateTaskNameWarning, NotRegistered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.compat.celery.app.task import Task

_OURS = "jobrunner.compat.celery"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class TaskRegistry(dict[str, Any]):
    """Tasks by name. Raises NotRegistered for a name that is not there.

    Args:
        add: the app's `register_task`.
    """

    NotRegistered = NotRegistered

    def __init__(self, add: Callable[[Any], Any]) -> None:
        super().__init__()
        self._add = add

    def __missing__(self, name: str) -> Any:
        raise NotRegistered(name)

    def register(self, task: Any) -> None:
        """What `app.register_task` does; older code calls it here."""
        self._add(task)

    def unregister(self, name: Any) -> None:
        """Take a task out. Raises NotRegistered."""
        name = getattr(name, "name", name)
        if name not in self:
            raise NotRegistered(name)
        del self[name]

    def regular(self) -> dict[str, Any]:
        """All tasks."""
        return dict(self)


def gen_task_name(main: str | None, name: str, module_name: str | None) -> str:
    """`module.function`; `main` stands for the module that is run as a program."""
    module_name = module_name or "__main__"
    module = sys.modules.get(module_name)
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    if module is not None and program is not None and getattr(module, "__file__", None) == program:
        module_name = "__main__"
    if module_name == "__main__" and main:
        module_name = main
    return ".".join(part for part in (module_name, name) if part)


def header_of(function: Any, *, bound: bool = False) -> Callable[..., None]:
    """A function that takes what the task takes and does nothing: it raises the TypeError that the call would."""
    signature = inspect.signature(function)
    if bound:
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    name = getattr(function, "__name__", "run")

    def check(*args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {_missing(signature, args, kwargs) or error}") from None

    check.signature = signature  # type: ignore[attr-defined]
    return check


def _missing(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What Python says of a call that lacks positional arguments; nothing when it lacks none."""
    needed = [one.name for one in signature.parameters.values() if one.kind in _BY_POSITION and one.default is inspect.Parameter.empty]
    lacking = [repr(name) for name in needed[len(args) :] if name not in kwargs]
    if not lacking:
        return ""
    names = lacking[0] if len(lacking) == 1 else f"{', '.join(lacking[:-1])} and {lacking[-1]}"
    return f"missing {len(lacking)} required positional argument{'s' if len(lacking) > 1 else ''}: {names}"


def make_task(app: Any, base: Any, function: Any, name: str, options: Mapping[str, Any], *, bound: bool) -> Any:
    """The one object of a new class of tasks, whose `run` is the function."""
    run = function if bound else staticmethod(function)
    made: Any = type(function.__name__, (base,), {
        "_app": app, "name": name, "run": run, "abstract": False, "__doc__": function.__doc__, "__module__": function.__module__,
        "__annotations__": _annotations_of(function),  # for typing.get_type_hints: not those of the class
        "__header__": staticmethod(header_of(function, bound=bound)), "__wrapped__": run, "_function": staticmethod(function), **options,
    })()  # fmt: skip
    made.__qualname__ = function.__qualname__
    return made


def _annotations_of(function: Any) -> dict[str, Any]:
    try:
        return dict(getattr(function, "__annotations__", None) or {})
    except NameError:  # of a name that is there for the type checker alone, where annotations are evaluated late
        return {}


def warn_of_duplicate(known: Any, new: Any, name: str, *, replaces: bool = False) -> bool:
    """Warn of a function, or a task that is written as a class, whose name is another one's already; at the line that has named it.

    Returns:
        Whether they are two. One and the same, seen once more, is nothing to be warned of; nor is a function whose name is that of a task
        which is written as a class, and so counts.
    """
    first = getattr(known, "_function", None if not replaces else type(known))
    if first is None or first is new or known is new:
        return False
    names = [f"{one.__module__}.{one.__qualname__}" for one in (first, getattr(new, "_function", type(new) if replaces else new))]
    which = "is replaced by" if replaces else "counts; not registered is"
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(DuplicateTaskNameWarning(f"the task name {name!r} is that of {names[0]}, which {which} {names[1]}"), stacklevel=level)
    return True


def positional_names(task: Task) -> tuple[str, ...]:
    """The parameters that positional arguments fill, in their order."""
    owner: Any = type(task)
    return _names(owner, task.run)


def takes_the_error(task: Task) -> bool:
    """Whether the task, as an errback, is called with (request, exc, traceback): a function of several parameters that is not bound.

    A bound one is sent the id, as is one that is written as a class: it may retry then. Source: Celery's `_call_task_errbacks`.
    """
    run = vars(task.__class__).get("run")  # not of type(): it may be a stand-in
    if not isinstance(run, staticmethod):
        return False
    try:
        kinds = [parameter.kind for parameter in inspect.signature(run.__func__).parameters.values()]
    except (TypeError, ValueError):  # written in C
        return False
    return inspect.Parameter.VAR_POSITIONAL in kinds or sum(kind in _BY_POSITION for kind in kinds) > 1


@functools.lru_cache(maxsize=4096)
def _names(_owner: type, run: Any) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):  # written in C: the arguments are kept by their place
        return ()
    return tuple(parameter.name for parameter in parameters if parameter.kind in _BY_POSITION)
