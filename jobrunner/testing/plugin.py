"""Owns the pytest plugin: the fixture `jobs_testing`, and two that a project overrides to say what it works on.

It must not import anything but pytest when it is loaded, nor do anything unless one of its fixtures is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.app import JobRunner
    from jobrunner.testing.helper import Jobs


@pytest.fixture
def jobrunner_jobs(request: pytest.FixtureRequest) -> JobRunner:
    """The JobRunner under test: that of the Flask app which the fixture `app` gives. Override it for anything else."""
    try:
        app = request.getfixturevalue("app")
    except pytest.FixtureLookupError as error:
        if error.argname != "app":
            raise
        app = None
    found: JobRunner | None = getattr(app, "extensions", {}).get("jobrunner")
    if found is None:
        what = "there is no fixture 'app'" if app is None else f"the fixture 'app' gave {app!r}, which has no JobRunner"
        raise pytest.UsageError(f"jobs_testing: {what}; override the fixture jobrunner_jobs in conftest.py: return your JobRunner")
    return found


@pytest.fixture
def jobrunner_transaction() -> Any:
    """The session or connection whose transaction is the test's; None works on the app's database. Override it."""
    return None


@pytest.fixture
def jobs_testing(jobrunner_jobs: JobRunner, jobrunner_transaction: Any) -> Iterator[Jobs]:
    """Run and inspect jobs: a `jobrunner.testing.Jobs`, in use for the length of the test."""
    import sqlalchemy as sa

    from jobrunner.testing.helper import Jobs

    if isinstance(jobrunner_transaction, sa.Connection):
        helper = Jobs(jobrunner_jobs, connection=jobrunner_transaction)
    elif jobrunner_transaction is not None:
        helper = Jobs(jobrunner_jobs, session=jobrunner_transaction)
    else:
        helper = Jobs(jobrunner_jobs)
    with helper:
        yield helper
