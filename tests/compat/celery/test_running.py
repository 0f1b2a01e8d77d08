"""A job of a task runs as in Celery's worker: its request, its states, its links; here in the test's own process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.compat.celery import Task, signals
from jobrunner.compat.celery.exceptions import Ignore, Reject, TaskRevokedError, TimeoutError  # noqa: A004  Celery's name
from tests.compat.celery.conftest import rows

PATIENCE = 60  # seconds


def test_arguments_arrive_as_they_were_given(app, run):
    """By position what was given by position, by name what was given by name; types survive."""

    @app.task(bind=True, name="show")
    def show(self, a, b, *rest, c=3, **more):
        return (a, b, rest, c, more), self.request.args, self.request.kwargs

    sent = show.delay(1, {2}, "r", c=(4,), d=datetime(2026, 1, 2, tzinfo=UTC))
    named = show.delay(b=1, a=2)
    run()
    more = {"d": datetime(2026, 1, 2, tzinfo=UTC)}
    assert sent.get(timeout=PATIENCE) == ((1, {2}, ("r",), (4,), more), (1, {2}, "r"), {"c": (4,), **more})
    assert named.get(timeout=PATIENCE) == ((2, 1, (), 3, {}), (), {"b": 1, "a": 2})


def test_a_job_by_sql_or_by_jobrunners_own_enqueue_runs_too(app, run, connection):
    """A row of the task is a call with named arguments."""

    @app.task(bind=True)
    def add(self, a, b=1):
        return [a + b, self.request.kwargs]

    app.finalize()
    connection.execute("INSERT INTO jobrunner.jobs (task, args, queue) VALUES (%s, '{\"a\": 1}', 'celery')", (add.name,))
    own = app.jobs.enqueue(add.name, {"a": 2, "b": 3})
    run()
    assert own.result(timeout=5) == [5, {"a": 2, "b": 3}]
    assert rows(connection, "state, result") == [("succeeded", [2, {"a": 1}]), ("succeeded", [5, {"a": 2, "b": 3}])]


def test_the_request_of_a_job(app, run):
    """Ids, headers as attributes, queue and priority of the call; a task that is sent by a task has it as its parent, and its root."""

    @app.task(bind=True, name="leaf")
    def leaf(self):
        return self.request.parent_id, self.request.root_id, self.request.delivery_info["priority"]

    @app.task(bind=True, name="tree")
    def tree(self):
        request = self.request
        own = (request.id, request.root_id, request.parent_id, request.retries, request.is_eager, request.called_directly)
        wire = (request.get("notify"), request.headers, request.delivery_info["routing_key"], request.delivery_info["priority"])
        return own, wire, request.time_limit, request.soft_time_limit, leaf.delay().id

    app.conf.task_inherit_parent_priority = True
    options = {"headers": {"notify": "n-1"}, "queue": "q", "priority": 7, "time_limit": 60, "soft_time_limit": 50}
    sent = tree.apply_async(task_id="my-id", **options)
    run()
    own, wire, hard, soft, child = sent.get(timeout=PATIENCE)
    assert own == ("my-id", "my-id", None, 0, False, False)
    assert wire == ("n-1", {"notify": "n-1"}, "q", 7)
    assert (hard, soft) == (60, 50)
    assert app.AsyncResult(child).get(timeout=PATIENCE) == ("my-id", "my-id", 7)


def test_own_states_and_ignore(app, run):
    """`update_state` can be read at once, by whoever asks; Ignore lets it stand as the last word, also FAILURE."""
    seen = []

    @app.task(bind=True)
    def work(self, last):
        self.update_state(state="PROGRESS", meta={"current": 1, "total": 4, "at": datetime(2026, 1, 2, tzinfo=UTC)})
        result = app.AsyncResult(self.request.id)
        seen.append((result.state, result.info["current"], result.info["at"].year, result.ready()))
        if last == "ignore":
            self.update_state(state="FAILURE", meta=LookupError("by hand"))
            raise Ignore
        if last == "silent":
            raise Ignore
        return "value"

    done, ignored, silent = work.delay("return"), work.delay("ignore"), work.delay("silent")
    run()
    assert seen == [("PROGRESS", 1, 2026, False)] * 3
    assert (done.state, done.get(timeout=PATIENCE)) == ("SUCCESS", "value")
    assert (ignored.state, repr(ignored.info)) == ("FAILURE", "LookupError('by hand')")
    assert silent.state == "PROGRESS"
    with pytest.raises(TimeoutError, match="ignored"):
        silent.get(timeout=PATIENCE)


def test_a_running_task_reads_started_only_on_request(app, run):
    """PENDING without `track_started`; with it STARTED."""
    seen = []

    def look(self):
        seen.append(app.AsyncResult(self.request.id).state)

    app.task(bind=True, name="quiet")(look).delay()
    app.task(bind=True, name="tracked", track_started=True)(look).delay()
    run()
    assert seen == ["PENDING", "STARTED"]


def test_ignored_results(app, run, connection):
    """Neither state nor result can be read; `store_errors_even_if_ignored` keeps errors; `get` of the sender's own result returns at once."""

    @app.task(ignore_result=True)
    def work(fails=False):
        if fails:
            raise LookupError("gone")
        return "kept from all"

    @app.task(ignore_result=True, store_errors_even_if_ignored=True)
    def errors():
        raise LookupError("gone")

    sent = [work.delay(), work.delay(fails=True), errors.delay(), work.apply_async(ignore_result=False)]
    assert sent[0].get(timeout=PATIENCE) is None
    run()
    assert [app.AsyncResult(one.id).state for one in sent] == ["PENDING", "PENDING", "FAILURE", "SUCCESS"]
    assert [row[0] for row in rows(connection, "result")] == [None, None, None, "kept from all"]


def test_a_rejected_task_has_failed(app, run, connection):
    """Without requeue it never runs again: FAILURE with its Reject, the signal and `link_error`, and none of the task's hooks."""
    seen: list[object] = []

    class Hooked(Task):
        def on_failure(self, *_arguments):
            seen.append("on_failure")

        def after_return(self, *_arguments):
            seen.append("after_return")

    @app.task(base=Hooked, name="work")
    def work():
        seen.append("ran")
        if "brought back" not in seen:
            raise Reject(OSError("no memory"), requeue=False)
        return "done"

    @app.task(name="errback")
    def errback(task_id):
        seen.append(("errback", task_id))

    def receive(sender, task_id, exception, args, einfo, **kwargs):
        seen.append((sender.name, task_id, type(exception), type(einfo.exception)))

    signals.task_failure.connect(receive)
    sent = work.apply_async(link_error=errback.s())
    run()
    assert (sent.state, sent.failed(), repr(sent.info.reason), sent.info.requeue) == ("FAILURE", True, "OSError('no memory')", False)
    assert seen == ["ran", ("work", sent.id, Reject, Reject), ("errback", sent.id)]
    assert [row[0] for row in rows(connection, "state")] == ["failed", "succeeded"]
    with pytest.raises(Reject):
        sent.get(timeout=PATIENCE)
    seen.append("brought back")
    home, job_id = app.backend.find(sent.id)
    home.job(job_id).retry()
    run()
    assert app.AsyncResult(sent.id).get(timeout=PATIENCE) == "done"


def test_a_requeued_task_knows_that_it_runs_again(app, run):
    """`redelivered` of the delivery info, by which a task rejects itself once; what a retry makes is not redelivered."""
    seen = []

    @app.task(bind=True, acks_late=True)
    def work(self):
        redelivered = self.request.delivery_info["redelivered"]
        seen.append((self.request.retries, redelivered))
        if len(seen) > 3:
            return "done"
        if redelivered:
            raise self.retry(countdown=0)
        raise Reject("not now", requeue=True)

    sent = work.delay()
    run()
    assert (sent.get(timeout=PATIENCE), seen) == ("done", [(0, False), (0, True), (1, False), (1, True)])


def test_an_expired_task_is_revoked_without_running(app, run):
    """Its state is REVOKED, and the signal says that it has expired."""
    seen: list[object] = []

    @app.task(name="late")
    def late():
        seen.append("ran")

    def receive(sender, request, terminated, signum, expired, **kwargs):
        seen.append((sender.name, request.id, terminated, signum, expired))

    signals.task_revoked.connect(receive)
    sent = late.apply_async(expires=datetime.now(UTC) - timedelta(seconds=1))
    in_time = late.apply_async(expires=3600)
    run()
    assert (sent.state, repr(sent.info)) == ("REVOKED", "TaskRevokedError('expired')")
    assert seen == [("late", sent.id, False, None, True), "ran"]
    assert in_time.state == "SUCCESS"
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=PATIENCE)
    home, job_id = app.backend.find(sent.id)
    home.job(job_id).retry()
    run()
    assert app.AsyncResult(sent.id).state == "SUCCESS"  # an operator wants it to run though it is late


def test_a_task_that_was_revoked_amid_its_run_is_not_tried_again(app, run):
    """Until an operator brings it back; revoked once more, that holds again."""
    seen = []

    @app.task(bind=True, max_retries=None)
    def work(self):
        seen.append(self.request.retries)
        if len(seen) < 4:
            if len(seen) != 2:
                app.control.revoke(self.request.id)
            raise self.retry(countdown=0)
        return "done"

    sent = work.delay()
    home, job_id = app.backend.find(sent.id)
    states_seen = []
    for _ in range(3):
        run()
        states_seen.append(app.AsyncResult(sent.id).state)
        if states_seen[-1] == "REVOKED":
            home.job(job_id).retry()
    assert states_seen == ["REVOKED", "REVOKED", "SUCCESS"]
    assert seen == [0, 1, 2, 3]


def test_retries_go_on_where_the_engine_stops_counting_attempts(app, run, connection):
    """A smallint counts attempts; `max_retries=None` is for ever all the same, and what the request counts goes on."""

    @app.task(bind=True, max_retries=None)
    def work(self, with_error):
        if self.request.retries < 32_770:
            raise self.retry(countdown=0, exc=LookupError("again") if with_error else None)
        return self.request.retries

    sent = [work.apply_async((with_error,), retries=32_765) for with_error in (False, True)]
    connection.execute("UPDATE jobrunner.jobs SET attempt = 32764, max_attempts = 32767, lease = 32764")
    run()
    assert [one.get(timeout=PATIENCE) for one in sent] == [32_770, 32_770]


def test_links_are_jobs_of_their_own(app, run):
    """A callback gets the result, an errback of one parameter the id; their parent and root are the task that they follow."""
    seen = []

    @app.task(bind=True, name="after")
    def after(self, *args):
        seen.append((args, self.request.parent_id))

    @app.task
    def handler(request, exc, traceback):
        seen.append((request.id, repr(exc)))

    @app.task(name="work")
    def work(fails):
        if fails:
            raise LookupError("gone")
        return (1, 2)

    ok = work.apply_async((False,), link=after.s("more").set(queue="other"))
    bad = work.apply_async((True,), link=after.s(), link_error=[handler.s(), after.s()])
    run()
    assert (ok.get(timeout=PATIENCE), bad.state) == ((1, 2), "FAILURE")
    assert set(seen) == {(bad.id, "LookupError('gone')"), (((1, 2), "more"), ok.id), ((bad.id,), bad.id)}


def test_a_bound_errback_is_sent_the_id(app, run):
    """However many parameters it has: the id comes before its own arguments. An unbound one with `*args` is called."""
    seen: list[Any] = []

    @app.task(bind=True)
    def bound(self, task_id, more):
        seen.append((task_id, more, self.request.called_directly))

    @app.task
    def several(*args):
        seen.append(tuple(type(value).__name__ for value in args))

    @app.task
    def work():
        raise LookupError("gone")

    sent = work.apply_async(link_error=[bound.s("m"), several.s()])
    run()
    assert sent.state == "FAILURE"
    assert seen == [("Context", "LookupError", "str"), (sent.id, "m", False)]


def test_an_error_of_a_hook_does_not_hide_that_of_the_task(app, run):
    """What the body raised is the result; that of `on_failure` is an internal error beside it, and the signal comes all the same."""
    seen = []
    base: Any = app.Task

    class Base(base):  # type: ignore[misc]
        def on_failure(self, exc, task_id, args, kwargs, einfo):  # noqa: ARG002  Celery's arguments
            raise ValueError("of the hook")

    def receive(exception, einfo, **kwargs):
        seen.append((repr(exception), einfo.internal))

    signals.task_internal_error.connect(receive)
    signals.task_failure.connect(receive)

    @app.task(base=Base)
    def work():
        raise LookupError("gone")

    sent = work.delay()
    run()
    assert (sent.state, repr(sent.info)) == ("FAILURE", "LookupError('gone')")
    assert seen == [("ValueError('of the hook')", True), ("LookupError('gone')", False)]


def test_a_wait_in_a_job_is_refused(app, run):
    """The deadlock class of Celery stays a RuntimeError."""

    @app.task
    def leaf():
        return 1

    @app.task
    def waits():
        return leaf.delay().get(timeout=1)

    sent = waits.delay()
    run()
    assert "Never call result.get() within a task!" in str(sent.info)


def test_class_tasks_and_annotations(app, run):
    """A task may be a class; `task_annotations` changes tasks by name or all of them, and wraps methods."""
    app.conf.task_annotations = [{"*": {"max_retries": 9}}, {"named": {"default_retry_delay": 1, "@run": lambda run: lambda self, a: run(self, a) * 10}}]

    base: Any = app.Task

    class Named(base):  # type: ignore[misc]
        name = "named"

        def run(self, a):
            return a + 1

    task = app.register_task(Named())
    sent = task.delay(1)
    run()
    assert (sent.get(timeout=PATIENCE), task.max_retries, task.default_retry_delay) == (20, 9, 1)
    with pytest.raises(TypeError):
        task.delay()


def test_a_result_that_cannot_be_stored_is_a_failure(app, run):
    """As with Celery's serializers; the message says what it was."""

    @app.task
    def work():
        return object()

    sent = work.delay()
    run()
    assert sent.state == "FAILURE"
    assert "cannot travel" in str(sent.info)


def test_an_expected_error_is_no_alarm_in_the_log(app, run, caplog):
    """`throws` makes it INFO without a traceback, any other error is ERROR with one; `shadow` is the name in these lines."""

    @app.task(throws=(KeyError,))
    def work(error):
        raise {"expected": KeyError, "unexpected": LookupError}[error]("gone")

    sent = [work.delay("expected"), work.apply_async(("unexpected",), shadow="of the night")]
    with caplog.at_level("INFO", logger="celery.app.trace"):
        run()
    told = {record.getMessage().split("]")[0]: (record.levelname, bool(record.exc_info)) for record in caplog.records if record.name == "celery.app.trace"}
    assert told == {f"Task {work.name}[{sent[0].id}": ("INFO", False), f"Task of the night[{sent[1].id}": ("ERROR", True)}
    assert [one.state for one in sent] == ["FAILURE", "FAILURE"]
    assert sent[1].name == "of the night"
