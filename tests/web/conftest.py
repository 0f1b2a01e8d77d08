"""Fixtures of the web tests: an app on an empty database, its role taken from a header so that a test chooses who asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobrunner import JobRunner
from jobrunner.web import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from flask.testing import FlaskClient

ROLE = "X-Test-Role"


def by_header(request):
    """Whoever says who they are is believed."""
    return request.headers.get(ROLE)


@pytest.fixture
def jobs(dsn) -> Iterator[JobRunner]:
    """A JobRunner with a few tasks."""
    runner = JobRunner(dsn=dsn, wakeups=False)

    @runner.task(queue="mail", max_attempts=3)
    def send_welcome(user_id: int, *, subject: str = "hello") -> str:
        return f"{user_id} {subject}"

    @runner.task
    def anything(**values: object) -> None:
        """Takes what comes."""

    yield runner
    runner.close()


@pytest.fixture
def app(jobs) -> Iterator[Flask]:
    """The dashboard over `jobs`."""
    made = create_app(jobs, auth=by_header)
    yield made
    made.extensions["jobrunner-web"].reads.close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Asks as admin, as our own page would."""
    made = app.test_client()
    made.environ_base |= {"HTTP_X_TEST_ROLE": "admin", "HTTP_SEC_FETCH_SITE": "same-origin"}
    return made
