"""A Flask app gives a JobRunner its config, its context around each job, and `flask jobs`."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, current_app, has_app_context
from flask.testing import FlaskCliRunner
from flask_sqlalchemy import SQLAlchemy

from jobrunner import ConfigurationError, InvalidPayload, JobRunner
from jobrunner.settings import parse_dsn


def build(**config) -> Flask:
    app = Flask("shop")
    app.config.update(config)
    return app


def test_the_config_is_read(dsn, connection):
    """`JOBRUNNER_*` keys set the database, the largest payload and the hints."""
    app = build(JOBRUNNER_DSN=dsn, JOBRUNNER_MAX_PAYLOAD_BYTES="1kB", JOBRUNNER_WAKEUPS="0", SQLALCHEMY_DATABASE_URI="sqlite://")
    jobs = JobRunner(app)
    assert (jobs.max_payload_bytes, jobs.wakeups) == (1000, False)
    assert jobs.dsn.origin == "JOBRUNNER_DSN of the Flask config"

    @jobs.task
    def say(text: str): ...

    with pytest.raises(InvalidPayload, match="the limit is 1,000"):
        say.enqueue("x" * 1000)
    say.enqueue("x" * 900)
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (1,)
    jobs.close()


@pytest.mark.parametrize("key", ["JOBRUNNER_MAX_PAYLOAD_BYTES", "JOBRUNNER_MAX_RESULT_BYTES"])
@pytest.mark.parametrize("value", ["much", 0, -1, "0", True, None])
def test_a_malformed_value_is_refused_at_start(key, value):
    """The message names the key and that it is the config's."""
    with pytest.raises(ConfigurationError, match=f"Flask config {key}="):
        JobRunner(build(**{key: value}))


@pytest.mark.parametrize("name", ["max_payload_bytes", "max_result_bytes"])
def test_sizes_come_from_argument_environment_config(name, monkeypatch):
    """The argument, then the environment, then the config, whenever the app is connected; a malformed one is named with its source."""
    key = f"JOBRUNNER_{name.upper()}"
    thousand: dict[str, Any] = {name: 1000}
    nothing: dict[str, Any] = {name: 0}
    app = build(**{key: "3kB"})
    assert getattr(JobRunner(), name) == 1_000_000
    late = JobRunner()
    late.init_app(app)
    assert getattr(late, name) == 3000
    monkeypatch.setenv(key, "2kB")
    assert getattr(JobRunner(), name) == 2000
    assert getattr(JobRunner(build(**{key: "3kB"})), name) == 2000
    assert getattr(JobRunner(build(**{key: "3kB"}), **thousand), name) == 1000
    with pytest.raises(ConfigurationError, match=f"JobRunner: {name}=0 must be above zero"):
        JobRunner(**nothing)
    monkeypatch.setenv(key, "much")
    with pytest.raises(ConfigurationError, match=f"{key}='much' is not a size"):
        JobRunner()


def test_another_kind_of_database_is_refused(monkeypatch):
    """SQLite as the app's database needs a PostgreSQL beside it; the message says which setting to use."""
    jobs = JobRunner(build(SQLALCHEMY_DATABASE_URI="sqlite://"))
    with pytest.raises(ConfigurationError, match="'sqlite'") as caught:
        jobs.dsn.url  # noqa: B018  asking for it is the call
    assert "JOBRUNNER_DSN" in caught.value.hint


def test_an_argument_comes_before_the_environment(monkeypatch):
    """dsn=, then JOBRUNNER_DSN, then the app's config; `use_dsn` (the command line) comes before all."""
    monkeypatch.setenv("JOBRUNNER_DSN", "postgresql://h/environment")
    app = build(SQLALCHEMY_DATABASE_URI="postgresql://h/config")
    assert JobRunner(app).dsn.url.endswith("/environment")
    jobs = JobRunner(build(), dsn="postgresql://h/argument")
    assert jobs.dsn.url.endswith("/argument")
    jobs.use_dsn("postgresql://h/option")
    assert jobs.dsn.url.endswith("/option")
    monkeypatch.delenv("JOBRUNNER_DSN")
    assert JobRunner(build(SQLALCHEMY_DATABASE_URI="postgresql://h/config")).dsn.url.endswith("/config")


def test_with_nothing_configured_the_embedded_postgresql_is_used(dsn, connection, monkeypatch, capsys):
    """It is started at first use, not at import, and says so in one line, once."""
    started: list[str] = []

    class Status:
        def __init__(self) -> None:
            self.dsn = dsn
            started.append(dsn)

    monkeypatch.setattr("jobrunner.embedded.start_project", Status)
    jobs = JobRunner(wakeups=False)

    @jobs.task
    def say(text: str): ...

    assert jobs.configured_dsn() is None
    assert not started
    say.enqueue("x")
    say.enqueue("y")
    assert len(started) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert parse_dsn(dsn, "test").url in printed.err
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (2,)
    jobs.close()


def test_each_job_has_an_app_context_of_its_own(dsn):
    """Around a job `current_app` is the app, and what the job left in `db.session` is gone with its context."""
    app = build(SQLALCHEMY_DATABASE_URI=parse_dsn(dsn, "test").sqlalchemy_url)
    db = SQLAlchemy(app)
    jobs = JobRunner(app)
    with jobs.execution_context():
        assert current_app.name == "shop"
        first = db.session()
    with jobs.execution_context():
        assert db.session() is not first
        db.engine.dispose()
    with JobRunner(dsn=dsn).execution_context():
        assert not has_app_context()
    jobs.close()


def test_flask_jobs_is_the_command_line():
    """`flask jobs --help` lists the commands of `jobrunner`."""
    app = build()
    JobRunner(app)
    result = FlaskCliRunner(app).invoke(args=["jobs", "--help"])
    assert result.exit_code == 0, result.output
    for command in ("work", "enqueue", "db"):
        assert command in result.output
