"""How a task ended, as `AsyncResult` tells it: errors and retries with their reasons, and ids that nobody knows."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.compat.celery.exceptions import Ignore, MaxRetriesExceededError, TimeoutError  # noqa: A004  Celery's name
from tests.compat.celery.conftest import rows

PATIENCE = 60  # seconds


def test_nothing_is_retried_by_itself(app, run, connection):
    """Celery's default, kept: an exception is FAILURE at once, and comes back as what it was, with the traceback as its cause."""

    class Odd(Exception):
        def __init__(self, code, *, hint):
            super().__init__(code)
            self.hint = hint

    @app.task
    def fail():
        raise Odd(5, hint="h")

    sent = fail.delay()
    run()
    assert (sent.state, sent.failed(), sent.ready()) == ("FAILURE", True, True)
    assert (type(sent.info).__name__, sent.info.args) == ("Odd", (5,))
    assert "raise Odd(5" in sent.traceback
    assert rows(connection, "state, attempt, max_attempts, error_type")[0][:3] == ("failed", 1, 1)
    with pytest.raises(Exception, match="5"):
        sent.get(timeout=PATIENCE)


def test_a_builtin_exception_is_itself_again(app, run):
    """Its class and arguments; `get` raises it, `propagate=False` gives it."""

    @app.task
    def fail():
        raise KeyError("k", 1)

    sent = fail.delay()
    run()
    with pytest.raises(KeyError) as caught:
        app.AsyncResult(sent.id).get(timeout=PATIENCE)
    assert caught.value.args == ("k", 1)
    assert "raise KeyError" in str(caught.value.__cause__)
    assert sent.get(propagate=False).args == ("k", 1)


def test_retries_keep_the_id_and_are_on_record_with_their_errors(app, run, connection):
    """RETRY between the attempts, with the exception; every attempt is in `v_attempts`; the pause is exactly the countdown."""
    seen = []

    @app.task(bind=True, max_retries=2)
    def flaky(self):
        seen.append((self.request.id, self.request.retries, app.AsyncResult(self.request.id).state))
        if self.request.retries < 2:
            raise self.retry(exc=OSError("away"), countdown=3600)
        return "done"

    sent = flaky.delay()
    run(later=False)
    assert (sent.state, repr(sent.info), sent.ready(), sent.retries) == ("RETRY", "OSError('away')", False, 1)
    assert "OSError" in sent.traceback
    [(state, pause)] = rows(connection, "state, run_at - error_at")
    assert (state, pause) == ("retrying", timedelta(hours=1))
    run()
    assert (sent.get(timeout=PATIENCE), sent.retries) == ("done", 2)
    assert seen == [(sent.id, 0, "PENDING"), (sent.id, 1, "RETRY"), (sent.id, 2, "RETRY")]
    attempts = connection.execute("SELECT attempt, outcome, error_type, traceback LIKE '%%flaky%%' FROM jobrunner.v_attempts ORDER BY lease").fetchall()
    assert attempts == [(1, "retried", "OSError", True), (2, "retried", "OSError", True), (3, "succeeded", None, None)]


def test_a_retry_without_a_reason_and_the_end_of_all_retries(app, run):
    """MaxRetriesExceededError is the result; a reason is it when there is one."""

    @app.task(bind=True, max_retries=1, default_retry_delay=0)
    def plain(self):
        self.retry()

    @app.task(autoretry_for=(OSError,), max_retries=1, retry_backoff=True)
    def automatic():
        raise OSError("away")

    first, second = plain.delay(), automatic.delay()
    run()
    assert isinstance(first.info, MaxRetriesExceededError)
    assert (repr(second.info), first.retries, second.retries) == ("OSError('away')", 1, 1)


def test_a_retry_may_change_the_call(app, run):
    """Arguments, queue, priority and headers of the next attempt."""

    @app.task(bind=True, name="change")
    def change(self, a, b=0):
        if not self.request.retries:
            raise self.retry(args=(5,), kwargs={"b": {6}}, countdown=0, queue="other", priority=2, headers={"h": 1})
        delivery = self.request.delivery_info
        return a, b, delivery["routing_key"], delivery["priority"], self.request.get("h"), self.request.args

    sent = change.delay(1, b=2)
    run()
    assert sent.get(timeout=PATIENCE) == (5, {6}, "other", 2, 1, (5,))


def test_a_retry_that_is_not_raised_follows_the_end(app, run):
    """`throw=False`: the body goes on, and whatever it returns, another attempt follows."""
    seen = []

    @app.task(bind=True, default_retry_delay=0)
    def work(self):
        if not self.request.retries:
            self.retry(throw=False)
            seen.append("went on")
            return "first"
        return "second"

    sent = work.delay()
    run()
    assert (sent.get(timeout=PATIENCE), seen) == ("second", ["went on"])


def test_a_forgotten_result_is_unknown_and_the_job_stays(app, run, connection):
    """`forget` lets the id be PENDING; history is not touched."""

    @app.task
    def work():
        return 1

    sent = work.delay()
    run()
    assert sent.exists()
    sent.forget()
    assert (sent.state, sent.exists()) == ("PENDING", False)
    assert rows(connection, "state") == [("succeeded",)]


@pytest.mark.parametrize(
    ("meta", "raised"),
    [
        ({"exc_type": "ValueError", "exc_message": "by hand", "note": "…"}, ValueError("by hand")),
        ({"exc_type": "LookupError", "exc_module": "builtins", "exc_message": ["a", 2]}, LookupError("a", 2)),
        ({"exc_type": "Absent", "exc_module": "no.such.module"}, Exception("")),
    ],
)
def test_a_task_that_says_its_failure_as_data_has_raised_it(app, run, meta, raised):
    """`update_state("FAILURE", meta)` and Ignore, with what Celery keeps of an exception: `info` is one, and `get` raises it."""

    @app.task(bind=True)
    def work(self):
        self.update_state(state="FAILURE", meta=meta)
        raise Ignore

    sent = work.delay()
    run()
    assert (sent.state, type(sent.info).__name__, sent.info.args) == ("FAILURE", meta["exc_type"], raised.args)
    with pytest.raises(type(raised)):
        sent.get(timeout=PATIENCE)


def test_data_that_is_no_exception_stays_what_it_is(app, run):
    """Beside a failure, and beside a state of one's own."""
    said = [("FAILURE", {"reason": "by hand"}), ("PROGRESS", {"exc_type": "ValueError"})]

    @app.task(bind=True)
    def work(self, index):
        state, meta = said[index]
        self.update_state(state=state, meta=meta)
        raise Ignore

    sent = [work.delay(index) for index in range(len(said))]
    run()
    assert [(one.state, one.info) for one in sent] == said


def test_waiting_has_an_end(app):
    """A waiting task and an unknown id raise Celery's TimeoutError when the time is over."""

    @app.task
    def work():
        return 1

    for result in (work.delay(), app.AsyncResult("nobody")):
        with pytest.raises(TimeoutError):
            result.get(timeout=0.05)


def test_what_follows_a_result(app, run):
    """`then` calls one function for success and another for failure; `date_done` is an aware moment, of a finished task only."""

    @app.task
    def work(fails):
        if fails:
            raise LookupError("gone")
        return 3

    done, failed = work.delay(False), work.delay(True)
    assert done.date_done is None
    run()
    seen = []
    assert done.then(lambda result: seen.append(result.result), on_error=seen.append) is done
    failed.then(seen.append, on_error=lambda result: seen.append(repr(result.info)))
    assert seen == [3, "LookupError('gone')"]
    moment = app.AsyncResult(done.id).date_done
    assert moment is not None
    assert moment.utcoffset() == timedelta(0)
