"""The pytest plugin in real runs of pytest: a small app with tests of its own, in a directory of its own."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

APP = """
import os
from jobrunner import JobRunner

jobs = JobRunner(dsn=os.environ["SHOP_DSN"])

@jobs.task
def send(user_id: int, loud: bool = False) -> int:
    if user_id < 0:
        raise ValueError("no such user")
    return user_id
"""
FLASK_CONFTEST = """
import os
import pytest
from flask import Flask
import shop

@pytest.fixture
def app():
    app = Flask("shop")
    shop.jobs.init_app(app)
    return app
"""
CONNECTION = """
import sqlalchemy as sa
from jobrunner.testing import rolled_back

@pytest.fixture
def jobrunner_transaction():
    engine = sa.create_engine(os.environ["SHOP_DSN"].replace("postgresql:", "postgresql+psycopg:"))
    with rolled_back(engine) as connection:
        yield connection
    engine.dispose()
"""
TESTS = """
from shop import send

def test_first(jobs_testing):
    jobs_testing.assert_not_enqueued()
    job = send.enqueue(42)
    jobs_testing.assert_enqueued(send, (42,))
    assert jobs_testing.drain().counts == {"succeeded": 1}
    assert job.result() == 42

def test_second(jobs_testing):
    assert jobs_testing.drain().counts == {}
    send.enqueue(1)
"""


@pytest.fixture
def project(pytester, monkeypatch, dsn):
    monkeypatch.setenv("SHOP_DSN", dsn)
    pytester.makepyfile(shop=APP)
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\nfilterwarnings = ['error']\npythonpath = ['.']\n")
    return pytester


def run(project, *options):
    return project.runpytest_subprocess("-p", "no:randomly", "-q", *options)


def count(connection, state="%"):
    return connection.execute("SELECT count(*) FROM jobrunner.v_jobs WHERE state LIKE %s", (state,)).fetchone()[0]


def test_the_fixture_works_on_the_apps_own_database(project, connection):
    """With a fixture `app` nothing else is needed; what the tests did is in the app's database."""
    project.makeconftest(FLASK_CONFTEST)
    project.makepyfile(test_shop=TESTS)
    run(project).assert_outcomes(passed=2)
    assert (count(connection, "succeeded"), count(connection, "queued")) == (1, 1)


def test_the_fixture_works_in_the_transaction_of_the_test(project, connection):
    """With `jobrunner_transaction` each test is rolled back."""
    project.makeconftest(FLASK_CONFTEST + CONNECTION)
    project.makepyfile(test_shop=TESTS + "\ntest_third = test_first\n")
    run(project).assert_outcomes(passed=3)
    assert count(connection) == 0


def test_a_session_or_another_job_runner(project, connection):
    """`jobrunner_jobs` names the JobRunner of an app that is not Flask's, `jobrunner_transaction` may be a session."""
    project.makeconftest("""
import os
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
import shop

@pytest.fixture
def jobrunner_jobs():
    return shop.jobs

@pytest.fixture
def jobrunner_transaction():
    engine = sa.create_engine(os.environ["SHOP_DSN"].replace("postgresql:", "postgresql+psycopg:"))
    with Session(engine) as session:
        yield session
    engine.dispose()
""")
    project.makepyfile(test_shop=TESTS)
    run(project).assert_outcomes(passed=2)
    assert count(connection) == 0


def test_a_failed_assertion_points_at_the_test(project):
    """The report ends at the test's own line, with the difference below it; helpers are not in the traceback."""
    project.makeconftest(FLASK_CONFTEST + CONNECTION)
    project.makepyfile(
        test_shop="""
from shop import send

def test_loud(jobs_testing):
    send.enqueue(42)
    jobs_testing.assert_enqueued(send, {"user_id": 42, "loud": True})

def test_error(jobs_testing):
    send.enqueue(-1)
    jobs_testing.drain()
"""
    )
    result = run(project)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "E * - args.loud: true",
            "E           ValueError: no such user",
            "E           raised by job *: task 'send', attempt 1 of 5, args {?user_id?: -1}",
        ]
    )
    result.stdout.no_fnmatch_line("*def assert_enqueued*")
    result.stdout.no_fnmatch_line("*draining.py*")
    result.stdout.fnmatch_lines_random(["test_shop.py:5: AssertionError", "*shop.py:*: ValueError"])


@pytest.mark.parametrize(
    ("conftest", "words"),
    [
        ("", "there is no fixture 'app'; override the fixture jobrunner_jobs"),
        (
            "import pytest\nfrom flask import Flask\n@pytest.fixture\ndef app():\n    return Flask('bare')\n",
            "which has no JobRunner; override the fixture jobrunner_jobs",
        ),
    ],
)
def test_without_a_job_runner_it_says_what_to_do(project, conftest, words):
    """The error of the fixture names the one to override."""
    project.makeconftest(conftest)
    project.makepyfile(test_shop=TESTS)
    result = run(project)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines([f"*{words}*"])


def test_an_app_fixture_that_needs_another_tells_so(project):
    """The error of the app's own fixture is not taken for a missing app."""
    project.makeconftest("import pytest\n@pytest.fixture\ndef app(nothing_like_this):\n    pass\n")
    project.makepyfile(test_shop=TESTS)
    run(project).stdout.fnmatch_lines(["*fixture 'nothing_like_this' not found*"])


def test_it_costs_nothing_when_it_is_not_used(project):
    """A run that does not ask for its fixtures imports neither Flask, SQLAlchemy nor psycopg, and gets no fixture it did not ask for."""
    project.makepyfile(
        test_other="""
import sys

def test_modules(request):
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & {"flask", "sqlalchemy", "psycopg"}
    assert "jobrunner.testing.plugin" in sys.modules
    assert not [name for name in sys.modules if name.startswith("jobrunner.") and not name.startswith("jobrunner.testing")]
    assert request.fixturenames == ["request"]
"""
    )
    run(project).assert_outcomes(passed=1)


def test_it_can_be_turned_off(project):
    """`-p no:jobrunner` removes the fixtures."""
    project.makeconftest(FLASK_CONFTEST)
    project.makepyfile(test_shop=TESTS)
    run(project, "-p", "no:jobrunner").stdout.fnmatch_lines(["*fixture 'jobs_testing' not found*"])
