"""Owns `Context`, what a task reads as `self.request`: the call that it runs for, with custom headers as attributes.

It must not read rows: the tracer fills it.
"""

from __future__ import annotations

from typing import Any

# What a message of Celery's has beside the attributes below; neither is a custom header.
_STANDARD = frozenset({"lang", "task", "argsrepr", "kwargsrepr", "compression"})


class Context:
    """One call of a task.

    Attributes:
        id: of the task; root_id and parent_id: of the first and of the sending task of the tree it belongs to.
        args, kwargs: what it was called with.
        retries: how often it was tried before.
        eta, expires: as text, when they were given.
        delivery_info: a dict with `routing_key` (the queue), `exchange`, `priority`, `redelivered`.
        headers: the custom ones, each of which is an attribute too; None when there are none.
        hostname: of the worker.
        timelimit: a pair of the hard and the soft one.
        is_eager: whether it runs without a worker; called_directly: whether nobody but the caller's own code runs it.
    """

    _children: list[Any] | None = None
    _protected = 0
    _retry: Any = None  # a retry that was asked for without raising
    args: Any = None
    callbacks: Any = None
    called_directly = True
    chain: Any = None
    chord: Any = None
    correlation_id: str | None = None
    delivery_info: Any = None
    errbacks: Any = None
    eta: str | None = None
    expires: str | None = None
    group: Any = None
    group_index: Any = None
    headers: Any = None
    hostname: str | None = None
    id: str | None = None
    ignore_result = False
    is_eager = False
    kwargs: Any = None
    logfile: Any = None
    loglevel: Any = None
    origin: str | None = None
    parent_id: str | None = None
    properties: Any = None
    retries = 0
    reply_to: str | None = None
    replaced_task_nesting = 0
    root_id: str | None = None
    shadow: str | None = None
    taskset: Any = None
    timelimit: Any = None
    time_limit: Any = None
    soft_time_limit: Any = None
    utc: Any = None
    stamped_headers: Any = None
    stamps: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)
        if self.headers is None:
            given = {**dict(*args), **kwargs}
            custom = {name: value for name, value in given.items() if name not in _STANDARD and not hasattr(Context, name)}
            self.headers = custom or None

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set attributes from a mapping."""
        vars(self).update(*args, **kwargs)
        limits = vars(self).get("timelimit")
        if "timelimit" in vars(self):
            pair = limits if isinstance(limits, (list, tuple)) and len(limits) > 1 else (None, None)
            self.time_limit, self.soft_time_limit = pair[0], pair[1]

    def clear(self) -> None:
        """Forget everything."""
        vars(self).clear()

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, or a custom header; `default` when there is none."""
        return getattr(self, key, default)

    @property
    def children(self) -> list[Any]:
        """Results of the tasks that this one has sent."""
        if self._children is None:
            self._children = []
        return self._children

    @property
    def task_id(self) -> str | None:
        """The id, as a request of a worker calls it."""
        return self.id

    def as_execution_options(self) -> dict[str, Any]:
        """The options with which the same call is sent again."""
        return {
            "task_id": self.id, "root_id": self.root_id, "parent_id": self.parent_id, "shadow": self.shadow, "link": self.callbacks,
            "link_error": self.errbacks, "expires": self.expires, "time_limit": self.time_limit, "soft_time_limit": self.soft_time_limit,
            "headers": dict(self.headers or {}), "retries": self.retries, "reply_to": self.reply_to, "ignore_result": self.ignore_result,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<Context: {vars(self)!r}>"
