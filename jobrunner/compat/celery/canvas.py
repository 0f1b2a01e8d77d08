"""Owns `Signature`: a call as a value, that can be kept, completed, linked and sent. What combines several of them is refused.

It must not pretend that a workflow would run: `chain`, `group`, `chord` and `|` raise, and say what to do meanwhile.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jobrunner.compat.celery import _state
from jobrunner.compat.celery.exceptions import Unsupported
from jobrunner.compat.celery.options import NAMES
from jobrunner.compat.celery.utils import uuid

_FIELDS = {"task", "args", "kwargs", "options", "subtask_type", "immutable", "chord_size"}


def maybe_list(value: Any) -> list[Any] | None:
    """A list of what is one or several; None stays None."""
    if value is None or isinstance(value, list):
        return value
    return list(value) if isinstance(value, (tuple, set)) else [value]


class Signature(dict[str, Any]):
    """A call of a task: a dict with `task` (its name), `args`, `kwargs`, `options`, `immutable`.

    Args:
        task: the task, its name, or the dict of another signature.
        args, kwargs, options: of the call.
        type: the task, when `task` is its name.
        immutable: whether the result of the task before it is not passed on to it.
    """

    def __init__(
        self,
        task: Any = None,
        args: Any = None,
        kwargs: Any = None,
        options: Any = None,
        type: Any = None,  # noqa: A002  the signature that is called
        subtask_type: Any = None,
        immutable: bool = False,  # noqa: FBT001, FBT002
        app: Any = None,
        **ex: Any,
    ) -> None:
        self._app, self._type = app, type
        if isinstance(task, dict):
            super().__init__(task)
            return
        name = task
        if task is not None and not isinstance(task, str):
            name, self._type = task.name, task
        super().__init__(
            task=name, args=tuple(args or ()), kwargs=dict(kwargs or {}), options={**(options or {}), **ex}, subtask_type=subtask_type,
            immutable=immutable,
        )  # fmt: skip

    # -- what it says

    task = property(lambda self: self["task"])
    args = property(lambda self: self["args"])
    kwargs = property(lambda self: self["kwargs"])
    options = property(lambda self: self["options"])
    immutable = property(lambda self: self.get("immutable", False))

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self["task"])

    @property
    def id(self) -> str | None:
        """The id that it will be sent with, once it is frozen."""
        found: str | None = self["options"].get("task_id")
        return found

    @property
    def app(self) -> Any:
        """The app that sends it."""
        return self._app or _state.get_current_app()

    @property
    def type(self) -> Any:
        """The task. Raises NotRegistered when this process does not know it."""
        return self._type or self.app.tasks[self["task"]]

    # -- sending it

    def __call__(self, *partial_args: Any, **partial_kwargs: Any) -> Any:
        """Run the task here and now."""
        args, kwargs, _ = self._merge(partial_args, partial_kwargs)
        return self.type(*args, **kwargs)

    def delay(self, *partial_args: Any, **partial_kwargs: Any) -> Any:
        """Send it, with further arguments."""
        return self.apply_async(partial_args, partial_kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, route_name: Any = None, **options: Any) -> Any:  # noqa: ARG002
        """Send it, with further arguments and options."""
        args, kwargs, options = self._merge(args, kwargs, options)
        task = self._type or self.app.tasks.get(self["task"])
        if task is None:  # of another code base
            return self.app.send_task(self["task"], args, kwargs, **options)
        return task.apply_async(args, kwargs, **options)

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run it here, as a worker would."""
        args, kwargs, options = self._merge(args, kwargs, options)
        return self.type.apply(args, kwargs, **options)

    def _merge(self, args: Any = None, kwargs: Any = None, options: Any = None) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """What is passed on comes before the arguments that are there."""
        merged = {**self["options"], **(options or {})}
        if self.immutable:
            return self["args"], self["kwargs"], merged
        return (*tuple(args or ()), *self["args"]), {**self["kwargs"], **(kwargs or {})}, merged

    # -- changing it

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Signature:
        """A copy, with further arguments and options."""
        args, kwargs, merged = self._merge(args, kwargs, options)
        return Signature(
            self["task"], args, kwargs, {key: list(value) if isinstance(value, list) else value for key, value in merged.items()},
            type=self._type, subtask_type=self.get("subtask_type"), immutable=self.immutable, app=self._app,
        )  # fmt: skip

    partial = clone

    def replace(self, args: Any = None, kwargs: Any = None, options: Any = None) -> Signature:
        """A copy with other arguments or options."""
        copy = self.clone()
        for name, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                copy[name] = value
        return copy

    def set(self, immutable: bool | None = None, **options: Any) -> Signature:  # noqa: FBT001
        """Add options. Returns the signature itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self["options"].update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:  # noqa: FBT001
        """Whether the result of the task before it is not passed on to it."""
        self["immutable"] = immutable

    def freeze(self, _id: str | None = None, **options: Any) -> Any:
        """Give it its id. Returns its result."""
        self["options"].setdefault("task_id", _id or uuid())
        self["options"].update({name: value for name, value in options.items() if value is not None})
        return self.app.AsyncResult(self["options"]["task_id"])

    def link(self, callback: Any) -> Any:
        """Have another signature sent with the result when this one has succeeded. Returns it."""
        return self._append("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Have another signature called when this one has failed. Returns it."""
        return self._append("link_error", errback)

    def on_error(self, errback: Any) -> Signature:
        """The same, but returns this one."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Any]:
        """This one and all that is linked to it."""
        return [self, *(one for linked in maybe_list(self["options"].get("link")) or [] for one in maybe_signature(linked).flatten_links())]

    def _append(self, key: str, value: Any) -> Any:
        items = self["options"][key] = maybe_list(self["options"].get(key)) or []
        if value not in items:
            items.append(value)
        return value

    def __or__(self, other: Any) -> NoReturn:
        raise Unsupported("chain (|)", NAMES["chain"].note)

    def __deepcopy__(self, memo: Any) -> Signature:
        memo[id(self)] = self
        return self.clone()

    __copy__ = clone

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """The call as it would be written."""
        args, kwargs, _ = self._merge(args, kwargs)
        words = [*(repr(value) for value in args), *(f"{name}={value!r}" for name, value in kwargs.items())]
        return f"{self['task']}({', '.join(words)})"

    def __repr__(self) -> str:
        return self.reprcall()

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __json__(self) -> dict[str, Any]:
        return dict(self)


def signature(varies: Any, *args: Any, app: Any = None, **kwargs: Any) -> Signature:
    """A signature of a task, of a task's name, or of what a signature was stored as."""
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, dict):
        kind = varies.get("subtask_type")
        if kind in {"chain", "group", "chord", "chunks", "xmap", "xstarmap"}:
            raise Unsupported(str(kind), NAMES["chain"].note)
        stored = {"args": (), "kwargs": {}, "options": {}, **{key: varies[key] for key in varies if key in _FIELDS}}
        return Signature({**stored, "kwargs": dict(stored["kwargs"]), "options": dict(stored["options"])}, app=app)
    return Signature(varies, *args, app=app, **kwargs)  # type: ignore[misc]  # nobody passes it by position


subtask = signature


def maybe_signature(value: Any, app: Any = None) -> Any:
    """The same for what may be one already, or None."""
    if value is None or isinstance(value, Signature):
        return value
    return signature(value, app=app)


class _Refused:
    """Stands for a part of Celery that combines tasks: it can be imported, and says at the call that it is not there."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise Unsupported(self.__name__, NAMES[self.__name__].note)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # asked by inspect, pickle and others of anything
            raise AttributeError(name)
        raise Unsupported(self.__name__, NAMES[self.__name__].note)

    def __repr__(self) -> str:
        return f"<{self.__name__}: not supported>"


chain, group, chord = _Refused("chain"), _Refused("group"), _Refused("chord")
chunks, xmap, xstarmap = _Refused("chunks"), _Refused("xmap"), _Refused("xstarmap")
