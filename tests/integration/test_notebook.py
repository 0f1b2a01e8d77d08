"""What jobs say of themselves on its way into the database: one bad word costs no other job its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobrunner import JobRunner
from jobrunner.jobs import LogLine, Note
from jobrunner.worker import notebook
from tests.support.attempts import Attempts

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def attempts(dsn) -> Iterator[Attempts]:
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def work() -> None: ...

    for _ in range(3):
        work.enqueue()
    opened = Attempts(jobs, dsn)
    yield opened
    opened.close()


def test_a_word_that_postgresql_refuses_is_dropped_alone(attempts):
    """Progress and lines of other jobs in the same batch are kept when one of them cannot be stored; superseded ones are told."""
    first, second, third = (attempts.claim() for _ in range(3))
    notes = [Note(first.id, first.lease, 0.1), Note(second.id, second.lease, 0.2, "\0"), Note(third.id, third.lease + 1, 0.3)]
    lines = [LogLine(job.id, job.lease, 1, 20, "shop", text, 1.0) for job, text in ((first, "good"), (second, "\0"), (third, "good"))]
    superseded = notebook.write(attempts.store, notes, lines)
    assert superseded == [notes[2]]
    assert lines == []
    found = attempts.connection.execute("SELECT id, progress FROM jobrunner.jobs ORDER BY id").fetchall()
    assert found == [(first.id, 0.1), (second.id, None), (third.id, None)]
    assert attempts.connection.execute("SELECT job_id FROM jobrunner.job_logs ORDER BY job_id").fetchall() == [(first.id,), (third.id,)]


def test_the_notebook_is_bounded(caplog):
    """While the database is away notes of one attempt are joined, the oldest lines go first, and that is said."""
    waiting = notebook.Notebook()
    for number in range(notebook.MAX_LINES + 5):
        waiting.add([Note(1, 1, number / 100_000, None if number else "first")], [LogLine(1, 1, number, 20, "shop", "line", 1.0)])
    notes, lines = waiting.take()
    assert notes == [Note(1, 1, (notebook.MAX_LINES + 4) / 100_000, "first")]
    assert (len(lines), lines[0].line) == (notebook.MAX_LINES, 5)
    waiting.put_back(notes, lines)
    waiting.add([Note(1, 1, 0.9)], [LogLine(1, 1, 7, 20, "shop", "y" * notebook.MAX_BYTES, 1.0)])
    notes, lines = waiting.take()
    assert notes == [Note(1, 1, 0.9, "first")]
    assert [line.line for line in lines] == [7]
    assert not waiting
