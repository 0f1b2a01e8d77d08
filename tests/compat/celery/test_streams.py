"""The streams that stand for stdout and stderr in a child, where what is printed is logged."""

from __future__ import annotations

import io
import logging

import pytest

from jobrunner.compat.celery.utils.log import LoggingProxy


@pytest.fixture
def logger():
    """One whose records go nowhere but to its own handlers."""
    found = logging.getLogger("of the streams")
    found.propagate = False
    yield found
    found.handlers.clear()


def test_a_line_is_logged_once_whatever_its_handlers_write_to(logger):
    """Handlers that were made in the child write to these streams themselves, and flush them after each record."""
    stdout, stderr = io.StringIO(), io.StringIO()
    out, err = LoggingProxy(logger, logging.WARNING, stdout), LoggingProxy(logger, logging.WARNING, stderr)
    for stream in (err, err, out):
        logger.addHandler(logging.StreamHandler(stream))
    print("one\ntwo", file=out)
    assert stderr.getvalue() == "one\none\ntwo\ntwo\n"
    assert stdout.getvalue() == "one\ntwo\n"


def test_a_stream_that_a_task_has_closed_looks_closed(logger):
    """By this the worker knows that the process is spoilt for the next job."""
    stream = LoggingProxy(logger, logging.WARNING, io.StringIO())
    assert not stream.closed
    stream.close()
    assert stream.closed
