"""Stored futures over jobs: what is asked of the database for many of them, and for those whose job is gone. No worker is needed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from flask import Flask

from jobrunner import JobRunner
from jobrunner.compat.flask_executor import Executor
from jobrunner.references import References
from tests.support import futures_app


@pytest.fixture
def executor(dsn):
    own = Flask(futures_app.__name__)
    own.config.update(EXECUTOR_TYPE="jobs")
    jobs = JobRunner(own, dsn=dsn)
    yield Executor(own)
    jobs.close()


def test_all_keys_are_asked_for_at_once(executor, connection, monkeypatch):
    """Three statements, however many there are, and no future is made of them. A key whose job is gone is none."""
    for number in range(4):
        executor.submit_stored(number, futures_app.add, number)
    connection.execute("INSERT INTO jobrunner.job_references (space, key, job_id) VALUES ('executor:', 'gone', 1000000000)")
    asked: list[Any] = []
    run = References._run

    def counted(self, *given):
        asked.append(given)
        return run(self, *given)

    monkeypatch.setattr(References, "_run", counted)
    monkeypatch.setattr(executor.futures, "future_of", None)
    assert list(iter(executor.futures._futures)) == [0, 1, 2, 3]  # without iter, `list` asks for the length as well
    assert len(asked) == 3


def test_a_key_whose_job_is_gone_is_free_where_its_future_is_held(executor, connection):
    """As in all other processes: that this one knows the end says nothing of retention."""
    held: Any = executor.submit_stored("report", futures_app.add, 1)
    assert held.cancel()
    with pytest.raises(ValueError, match="report already exists"):
        executor.submit_stored("report", futures_app.add, 2)
    connection.execute("DELETE FROM jobrunner.job_history WHERE id = %s", (held.job_id,))
    again: Any = executor.submit_stored("report", futures_app.add, 2)
    assert executor.futures._futures["report"].job_id == again.job_id != held.job_id


def test_who_polls_a_key_leaves_nothing_with_the_watcher(executor, monkeypatch):
    """Each question makes a future that nobody holds afterwards; what was to hear of its job is over with it, but for whoever submitted."""
    submitted: Any = executor.submit_stored("report", futures_app.add, 1)
    notice = submitted.notice
    make = executor.futures._future
    made: list[Any] = []

    def kept(job_id):
        future = make(job_id)
        made.append(future.notice)
        assert not future.notice.is_over()
        return future

    monkeypatch.setattr(executor.futures, "_future", kept)
    del submitted
    gc.collect()
    for _ in range(2):
        assert executor.futures.done("report") is False
        gc.collect()
    assert len(made) == 2
    assert [one.is_over() for one in made] == [True, True]
    assert not notice.is_over()
