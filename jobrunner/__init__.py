"""Background jobs for Flask in the PostgreSQL you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.app import JobRunner
    from jobrunner.control import Cancel, Fail, JobStopped, Retry, Snooze
    from jobrunner.current import JobContext, current_job
    from jobrunner.errors import (
        AppImportError,
        ConfigurationError,
        DatabaseUnreachable,
        DuplicateJob,
        DuplicateReference,
        EnqueueError,
        GroupNotFound,
        IllegalTransition,
        InvalidPayload,
        JobCancelled,
        JobFailed,
        JobNotFound,
        JobrunnerError,
        LeaseLost,
        NoCurrentJob,
        ResultExpired,
        SchemaError,
        SchemaMissing,
        SchemaOutdated,
        SchemaTooNew,
        SoftTimeLimitExceeded,
        UnknownTask,
    )
    from jobrunner.handle import Job
    from jobrunner.topics.events import Event

__version__ = "0.1.0"

# Imported at first use: `jobrunner --version` and every refusal of a command line would else pay for all of it.
_HOMES = {
    "AppImportError": "jobrunner.errors",
    "Cancel": "jobrunner.control",
    "ConfigurationError": "jobrunner.errors",
    "DatabaseUnreachable": "jobrunner.errors",
    "DuplicateJob": "jobrunner.errors",
    "DuplicateReference": "jobrunner.errors",
    "EnqueueError": "jobrunner.errors",
    "Event": "jobrunner.topics.events",
    "Fail": "jobrunner.control",
    "GroupNotFound": "jobrunner.errors",
    "IllegalTransition": "jobrunner.errors",
    "InvalidPayload": "jobrunner.errors",
    "Job": "jobrunner.handle",
    "JobCancelled": "jobrunner.errors",
    "JobContext": "jobrunner.current",
    "JobFailed": "jobrunner.errors",
    "JobNotFound": "jobrunner.errors",
    "JobRunner": "jobrunner.app",
    "JobStopped": "jobrunner.control",
    "JobrunnerError": "jobrunner.errors",
    "LeaseLost": "jobrunner.errors",
    "NoCurrentJob": "jobrunner.errors",
    "ResultExpired": "jobrunner.errors",
    "Retry": "jobrunner.control",
    "SchemaError": "jobrunner.errors",
    "SchemaMissing": "jobrunner.errors",
    "SchemaOutdated": "jobrunner.errors",
    "SchemaTooNew": "jobrunner.errors",
    "Snooze": "jobrunner.control",
    "SoftTimeLimitExceeded": "jobrunner.errors",
    "UnknownTask": "jobrunner.errors",
    "current_job": "jobrunner.current",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AppImportError",
    "Cancel",
    "ConfigurationError",
    "DatabaseUnreachable",
    "DuplicateJob",
    "DuplicateReference",
    "EnqueueError",
    "Event",
    "Fail",
    "GroupNotFound",
    "IllegalTransition",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobNotFound",
    "JobRunner",
    "JobStopped",
    "JobrunnerError",
    "LeaseLost",
    "NoCurrentJob",
    "ResultExpired",
    "Retry",
    "SchemaError",
    "SchemaMissing",
    "SchemaOutdated",
    "SchemaTooNew",
    "Snooze",
    "SoftTimeLimitExceeded",
    "UnknownTask",
    "__version__",
    "current_job",
]
