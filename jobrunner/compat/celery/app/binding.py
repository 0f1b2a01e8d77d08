"""Owns what a task says about itself, and how it is bound to an app, whose configuration says the rest.

It must not call anything: `task` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jobrunner.compat.celery import _state
from jobrunner.compat.celery.app import retrying
from jobrunner.compat.celery.exceptions import MaxRetriesExceededError, OperationalError

if TYPE_CHECKING:
    from jobrunner.compat.celery.app.base import Celery

_DEFAULT_RETRY_DELAY = 3 * 60  # seconds, Celery's own


class _OfClass:
    """A property that classes have too."""

    def __init__(self, find: Any) -> None:
        self._find = find

    def __get__(self, instance: Any, owner: type) -> Any:
        return self._find(owner)


class BoundOptions:
    """The options of a task as attributes of its class; what becomes of each is in `jobrunner.compat.celery.options.TASK_OPTIONS`."""

    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    _app: ClassVar[Any] = None
    _bound: ClassVar[bool] = False
    name: str = None  # type: ignore[assignment]  # set when it is registered
    typing: bool | None = None
    max_retries: int | None = 3
    default_retry_delay: float = _DEFAULT_RETRY_DELAY
    rate_limit: Any = None
    ignore_result: Any = None
    trail = True
    send_events = True
    store_errors_even_if_ignored: Any = None
    store_eager_result: Any = None
    serializer: Any = None
    time_limit: Any = None
    soft_time_limit: Any = None
    track_started: Any = None
    acks_late: Any = None
    acks_on_failure_or_timeout: Any = None
    acks_on_failure: Any = None
    acks_on_timeout: Any = None
    reject_on_worker_lost: Any = None
    retry_on_worker_lost: Any = None
    throws: Any = ()
    expires: Any = None
    priority: Any = None
    queue: Any = None
    routing_key: Any = None
    exchange: Any = None
    delivery_mode: Any = None
    compression: Any = None
    resultrepr_maxsize = 1024
    abstract = True
    autoretry_for: Any = ()
    dont_autoretry_for: Any = ()
    retry_kwargs: Any = {}  # noqa: RUF012  replaced by subclasses, never changed
    retry_backoff: Any = False
    retry_backoff_max: Any = 600
    retry_jitter: Any = True

    from_config: ClassVar[tuple[tuple[str, str], ...]] = (
        ("serializer", "task_serializer"),
        ("rate_limit", "task_default_rate_limit"),
        ("priority", "task_default_priority"),
        ("time_limit", "task_time_limit"),
        ("soft_time_limit", "task_soft_time_limit"),
        ("track_started", "task_track_started"),
        ("acks_late", "task_acks_late"),
        ("reject_on_worker_lost", "task_reject_on_worker_lost"),
        ("retry_on_worker_lost", "task_retry_on_worker_lost"),
        ("ignore_result", "task_ignore_result"),
        ("store_eager_result", "task_store_eager_result"),
        ("store_errors_even_if_ignored", "task_store_errors_even_if_ignored"),
    )

    # -- its app

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Belong to an app: what the task leaves open is taken from its configuration."""
        again, cls._bound = cls.__dict__.get("_bound", False), True
        cls._app = app
        if cls.typing is None:
            cls.typing = app.strict_typing
        for attribute, name in cls.from_config:
            if getattr(cls, attribute, None) is None:
                setattr(cls, attribute, app.conf[name])
        if not again:
            cls.annotate()
        cls.on_bound(app)
        return app

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Called when the task is bound to an app; for subclasses."""

    @classmethod
    def _get_app(cls) -> Celery:
        if cls._app is None:
            cls._app = _state.get_current_app()
        if not cls.__dict__.get("_bound", False):
            cls.bind(cls._app)
        return cls._app  # type: ignore[no-any-return]

    app = _OfClass(lambda cls: cls._get_app())

    @classmethod
    def annotate(cls) -> None:
        """Take over what `task_annotations` says about this task."""
        for annotation in retrying.annotations_of(cls._app.conf["task_annotations"], cls):
            for key, value in annotation.items():
                if key.startswith("@"):
                    cls.add_around(key[1:], value)
                else:
                    setattr(cls, key, value)

    @classmethod
    def add_around(cls, attr: str, around: Any) -> None:
        """Wrap a method."""
        original = getattr(cls, attr)
        original = getattr(original, "__wrapped__", None) or original
        wrapped = around(original)
        wrapped.__wrapped__ = original
        setattr(cls, attr, wrapped)
