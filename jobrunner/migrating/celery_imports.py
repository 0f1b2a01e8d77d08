"""Owns the ratings of what is imported of Celery beside its public names, of test fixtures, and of packages that go with Celery.

It must not say how they are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.migrating.ratings import Rating, Row, Rule, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

_OK, _CHANGED, _UNSUPPORTED = Rating.OK, Rating.CHANGED, Rating.UNSUPPORTED
_NOTHING = "Nothing to do."
_LATER_BEAT = "Let Celery's beat or crontab go on with it: schedules are not there yet, and the call says so."
_NO_INTERNALS = "Replace it: these are internals of Celery's own worker, and there is nothing behind them here."

# Dotted names as they are imported, for what is no name of a table above.
IMPORTS: tuple[Row, ...] = (
    (
        (
            "celery celery.app celery.app.base celery.app.task celery.result celery.schedules celery.exceptions celery.signals"
            " celery.states celery.canvas celery.utils celery.utils.log"
        ),
        _OK,
        "Write `jobrunner.compat.celery` for `celery`.",
    ),
    (
        (
            "celery.utils.log.get_task_logger celery.utils.log.get_logger celery.utils.uuid celery.uuid celery.utils.gen_unique_id"
            " celery.app.log.TaskFormatter celery.utils.log.TaskFormatter"
        ),
        _OK,
        "Write `jobrunner.compat.celery` for `celery`.",
    ),
    ("celery.utils.*", _CHANGED, "Replace it by your own function: Celery's helpers are not carried over."),
    ("celery.local.*", _CHANGED, "Use werkzeug's LocalProxy: Celery's helpers are not carried over."),
    (
        "celery.task.* celery.decorators.* celery.five.* celery.task celery.decorators celery.five",
        _UNSUPPORTED,
        "Move to `app.task` and `app.control` first: Celery 5 has this module no more.",
    ),
    ("celery.contrib.abortable.*", _UNSUPPORTED, "Use current_job().should_stop() in the task and `revoke(id, terminate=True)`."),
    (
        "celery.contrib.testing.* celery.contrib.pytest.* celery.contrib.testing celery.contrib.pytest",
        _UNSUPPORTED,
        "Use jobrunner.testing, or task_always_eager.",
    ),
    (
        (
            "celery.contrib.* celery.loaders.* celery.bootsteps.* celery.worker.* celery.concurrency.* celery.bin.* celery.apps.*"
            " celery.platforms.* celery.security.* celery.app.amqp.* celery.app.log.* celery.app.trace.* celery.app.defaults.*"
            " celery.app.utils.* celery.app.routes.* celery.app.registry.* celery.events.* celery.fixups.* celery._state.*"
        ),
        _UNSUPPORTED,
        _NO_INTERNALS,
    ),
    ("celery.app.control.*", _UNSUPPORTED, "Use `app.control`."),
    ("celery.backends.*", _UNSUPPORTED, "Use AsyncResult: results are rows of Jobrunner's tables."),
    ("celery.beat.*", _UNSUPPORTED, _LATER_BEAT),
    ("celery.__version__ celery.VERSION celery.version_info_t", _CHANGED, "Check what it decides: there is no Celery to have a version."),
    ("kombu.*", _CHANGED, "Write the names of the queues: `task_queues` takes names, or objects with a name; the rest of kombu goes."),
    ("celery.*", _UNSUPPORTED, _NO_INTERNALS),
)

TESTS: tuple[Row, ...] = (
    (
        (
            "celery_app celery_session_app celery_config celery_parameters celery_includes celery_enable_logging use_celery_app_trap"
            " celery_class_tasks celery_worker_pool celery_worker_parameters"
        ),
        _UNSUPPORTED,
        "Use jobrunner.testing, or task_always_eager: there is no plugin with this fixture.",
    ),
    (
        "celery_worker celery_session_worker start_worker",
        _UNSUPPORTED,
        "Use `drain()` of jobrunner.testing: it runs what was enqueued, here and now.",
    ),
    ("patch", _OK, "Nothing to do: the method can be replaced as before."),
    ("*", _OK, _NOTHING),
)

PACKAGES: tuple[Row, ...] = (
    ("celery", _CHANGED, "Take it out when no import of it is left, and require jobrunner-pg."),
    ("flower", _CHANGED, "Use the dashboard: Flower cannot see these workers."),
    ("celery_once celery_singleton", _UNSUPPORTED, "Use `options(unique=True)` of the native task."),
    (
        "redbeat celery_redbeat celerybeatmongo sqlalchemy_celery_beat celery_sqlalchemy_scheduler django_celery_beat",
        _UNSUPPORTED,
        _LATER_BEAT,
    ),
    ("django_celery_results celery_progress", _UNSUPPORTED, "Read AsyncResult or the view v_jobs."),
    (
        "flask_celeryext flask_celery flask_celery_helper flask_celery_context",
        _UNSUPPORTED,
        "Build the app with `Celery(...)` of jobrunner.compat.celery: every job has the app context already.",
    ),
    ("celery_batches celery_dyrygent celery_director", _UNSUPPORTED, "Rewrite it: the package reaches into Celery's internals."),
    (
        "sentry_sdk.integrations.celery opentelemetry.instrumentation.celery ddtrace.contrib.celery",
        _UNSUPPORTED,
        "Take it out: it patches Celery's own package, and sees nothing of these workers.",
    ),
    ("*", _CHANGED, "Check what it does with Celery: it is another package, and was not looked at."),
)

# As they are named on the package index.
REQUIREMENTS: tuple[Row, ...] = (
    ("celery", _CHANGED, "Take it out when no import of it is left, and require jobrunner-pg."),
    ("flower", _CHANGED, "Take it out: the dashboard reads the same tables as the workers."),
    ("librabbitmq redbeat celery-redbeat django-celery-beat", _CHANGED, "Take it out with Celery."),
    ("*", _CHANGED, "Check what it does with Celery: it is another package, and was not looked at."),
)


def all_rules() -> Iterator[Rule]:
    """Every rule about imports, test fixtures and packages."""
    yield from rules("celery", "import", IMPORTS)
    yield from rules("celery", "test", TESTS)
    yield from rules("celery", "package", PACKAGES)
    yield from rules("celery", "requirement", REQUIREMENTS)
