"""Owns finding the app that `celery -A` would find, in a process of its own, and asking what its workers go by.

It must not leave anything of the application in this process: the worker's own template imports it again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jobrunner.cli.celery_flags import AppFacts
from jobrunner.errors import AppImportError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = (
    "worker_concurrency", "worker_pool", "worker_max_tasks_per_child", "worker_max_memory_per_child", "worker_soft_shutdown_timeout",
)  # fmt: skip
_NAMES = ("app", "celery")  # that Celery looks for in a module, in this order
_CHANGE = "change its import to jobrunner.compat.celery; this lists every place:   jobrunner migrate-check ."


def ask(spec: str) -> AppFacts:
    """Import the app in a forked child, and bring back its address, its queues and its settings.

    Args:
        spec: as behind `celery -A`: `proj`, `proj.module`, `proj.module:attribute`, `proj.celery`.

    Raises:
        AppImportError: there is no such app, its import raised, or it is Celery's own and not the one of jobrunner.compat.celery.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _answer(spec, write_end)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answer = json.loads(text or '{"error": "its import ended the process"}')
    if "error" in answer:
        raise AppImportError(f'could not find the app of -A "{spec}": {answer["error"]}', hint=answer.get("hint", ""))
    return AppFacts(answer["address"], tuple(answer["queues"]), answer["settings"])


def _answer(spec: str, pipe: int) -> None:
    """The child's part: never returns."""
    try:
        os.dup2(2, 1)  # what the app prints at import is no answer of ours
        text = json.dumps(_facts(spec))
    except BaseException as error:  # noqa: BLE001  an app can raise anything at import
        said = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
        text = json.dumps({"error": said, "hint": getattr(error, "hint", "")})
    with contextlib.suppress(OSError), os.fdopen(pipe, "w", encoding="utf-8") as file:
        file.write(text)
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(0)


def _facts(spec: str) -> dict[str, Any]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    address, found = locate(spec)
    if any(part.__module__.partition(".")[0] == "celery" for part in type(found).__mro__ if part.__name__ == "Celery"):
        raise ConfigurationError(f"{address} is an app of Celery's own", hint=f"try:   {_CHANGE}")
    conf = getattr(found, "conf", None)
    settings = {name: value for name in _SETTINGS if isinstance(value := getattr(conf, name, None), str | int | float)}
    return {"address": _holder(address, found), "queues": _queues(conf), "settings": settings}


def _holder(address: str, found: object) -> str:
    """The Flask app of the module that holds the Celery app in its extensions, else the Celery app itself.

    By the Flask app a worker finds the database that its config names, which is the one that the web processes send to.
    """
    from jobrunner.loading import find_jobrunner

    module = address.partition(":")[0]
    for name, value in list(vars(importlib.import_module(module)).items()):
        with contextlib.suppress(Exception):  # a stand-in such as `flask.request` raises whatever it is asked
            held = value.extensions.values()
            if any(one is found for one in held) and find_jobrunner(value) is getattr(found, "__jobrunner__", found):
                return f"{module}:{name}"
    return address


def locate(spec: str) -> tuple[str, object]:
    """Where Celery would find its app, as `module:attribute`, and what is there.

    Raises:
        ConfigurationError: nothing is there, or nothing that could be an app.
        ImportError: there is no such module. Whatever else the import raises passes through.
    """
    name, colon, attribute = spec.partition(":")
    if colon:
        return spec, _attribute(importlib.import_module(name), attribute)
    parent, _, last = name.rpartition(".")
    if parent:
        try:
            holder = importlib.import_module(parent)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{parent}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
            raise ConfigurationError(f"there is no module {parent!r}", hint=f"looked in {Path.cwd()} and on PYTHONPATH") from error
        found = getattr(holder, last, None)
        if found is not None and not isinstance(found, ModuleType):
            return f"{parent}:{last}", found
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigurationError(f"there is no module {name!r}", hint=f"looked in {Path.cwd()} and on PYTHONPATH") from error
    return _in_module(module)


def _in_module(module: ModuleType) -> tuple[str, object]:
    named = [(name, found) for name in _NAMES if (found := getattr(module, name, None)) is not None and not isinstance(found, ModuleType)]
    # Celery takes the first of the names whatever it is; a Flask app of that name beside a Celery app would do nobody any good.
    for name, found in named:
        if is_celery(found):
            return f"{module.__name__}:{name}", found
    if hasattr(module, "__path__"):
        inner = f"{module.__name__}.celery"
        try:
            return _in_module(importlib.import_module(inner))
        except ModuleNotFoundError as error:
            if error.name != inner:
                raise
    for name, found in vars(module).items():
        if is_celery(found):
            return f"{module.__name__}:{name}", found
    if named:
        return f"{module.__name__}:{named[0][0]}", named[0][1]
    raise ConfigurationError(f"{module.__name__} has no app", hint="try:   -A module:attribute")


def is_celery(value: object) -> bool:
    """Whether a value is an instance of a class that is called Celery, or derives from one."""
    return not isinstance(value, type) and any(part.__name__ == "Celery" for part in type(value).__mro__)


def _attribute(module: ModuleType, path: str) -> object:
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            has = ", ".join(_candidates(module)) or "no app at all"
            raise ConfigurationError(f"{module.__name__} has no {path!r}", hint=f"it has: {has}")
        found = getattr(found, part)
    return found


def _candidates(module: ModuleType) -> Iterator[str]:
    return (name for name, value in vars(module).items() if is_celery(value))


def _queues(conf: Any) -> list[str]:
    """The names of the queues that an app declares, else its default queue; none when it has no configuration."""
    if conf is None:
        return []
    declared = getattr(conf, "task_queues", None) or ()
    names = [str(getattr(queue, "name", queue)) for queue in declared]
    default = getattr(conf, "task_default_queue", None)
    return names or ([str(default)] if default else [])
