"""Background jobs for Flask in the PostgreSQL you already have."""

from jobrunner.app import JobRunner
from jobrunner.current import JobContext, current_job
from jobrunner.errors import (
    AppImportError,
    Cancel,
    ConfigurationError,
    DatabaseUnreachable,
    DuplicateJob,
    EnqueueError,
    Fail,
    IllegalTransition,
    InvalidPayload,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobrunnerError,
    LeaseLost,
    NoCurrentJob,
    Retry,
    SchemaError,
    SchemaMissing,
    SchemaOutdated,
    SchemaTooNew,
    Snooze,
    UnknownTask,
)
from jobrunner.handle import Job

__version__ = "0.1.0"

__all__ = [
    "AppImportError",
    "Cancel",
    "ConfigurationError",
    "DatabaseUnreachable",
    "DuplicateJob",
    "EnqueueError",
    "Fail",
    "IllegalTransition",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobNotFound",
    "JobRunner",
    "JobrunnerError",
    "LeaseLost",
    "NoCurrentJob",
    "Retry",
    "SchemaError",
    "SchemaMissing",
    "SchemaOutdated",
    "SchemaTooNew",
    "Snooze",
    "UnknownTask",
    "__version__",
    "current_job",
]
