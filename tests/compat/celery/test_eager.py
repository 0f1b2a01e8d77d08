"""Tasks that run where they are called, as the test suites of applications have them; no row is written and no database is there."""

# ruff: noqa: ARG002, C901  hooks have Celery's arguments, all of them in one class
from __future__ import annotations

from typing import Any

import pytest

from jobrunner.compat.celery import Celery, current_task, signals, states
from jobrunner.compat.celery.exceptions import EncodeError, Ignore, Retry, TaskRevokedError
from jobrunner.compat.celery.result import AsyncResult, EagerResult, allow_join_result


@pytest.fixture
def eager():
    """An app that has no database and needs none."""
    return Celery("shop", broker="redis://nowhere", task_always_eager=True)


def test_a_call_gives_its_result_at_once(eager):
    """`delay` and `apply_async` give an EagerResult; a direct call gives the value."""

    @eager.task
    def add(a, b=1):
        return a + b

    for result in (add.delay(1, b=2), add.apply_async((1,), {"b": 2}), add.apply((1,), {"b": 2}), add.s(1, b=2).delay(), add.s(2).apply_async((1,))):
        assert isinstance(result, EagerResult)
        assert (result.get(), result.state, result.successful(), result.ready(), result.result) == (3, "SUCCESS", True, True, 3)
    assert add(1) == 2
    assert add.run(4) == 5


def test_arguments_go_through_typed_json(eager):
    """What a worker could not be given is refused in the test already; tuples, sets and dates stay what they are."""
    from datetime import UTC, date, datetime
    from decimal import Decimal
    from uuid import UUID

    @eager.task
    def echo(value):
        return value

    for value in ((1, (2,)), {3}, frozenset({4}), b"x", date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), Decimal("1.50"), UUID(int=5), {6: 7}):
        assert echo.delay(value).get() == value
        assert type(echo.delay(value).get()) is type(value)
    with pytest.raises(EncodeError, match="cannot travel"):
        echo.delay(object())


def test_an_error_is_kept_or_raised(eager):
    """Without `task_eager_propagates` the result is FAILURE with the exception and its traceback; with it the call raises."""

    @eager.task(name="fail")
    def fail():
        raise LookupError("gone")

    result = fail.delay()
    assert (result.state, result.failed(), repr(result.info)) == ("FAILURE", True, "LookupError('gone')")
    assert "LookupError: gone" in result.traceback
    assert repr(result.get(propagate=False)) == "LookupError('gone')"
    with pytest.raises(LookupError):
        result.get()
    with pytest.raises(LookupError):
        fail.apply(throw=True)
    eager.conf.task_eager_propagates = True
    with pytest.raises(LookupError):
        fail.delay()
    assert fail.apply(throw=False).state == "FAILURE"


def test_the_signature_is_checked_at_the_call(eager):
    """A call that does not fit is a TypeError of the caller, but with `typing=False`."""

    @eager.task(bind=True)
    def add(self, a, b):
        return a + b

    @eager.task(typing=False)
    def free(a):
        return a

    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'b'"):
        add.delay(1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        add.delay(1, 2, c=3)
    assert free.delay().state == "FAILURE"


def test_a_retry_follows_at_once(eager):
    """The same id, one retry more each time, until it succeeds or none is left; with `throw` the Retry is raised, as in Celery 5.7."""
    seen = []

    @eager.task(bind=True, max_retries=2, default_retry_delay=3600)
    def flaky(self, succeeds_after):
        seen.append((self.request.id, self.request.retries))
        if self.request.retries < succeeds_after:
            raise self.retry(exc=OSError("away"))
        return "done"

    result = flaky.delay(2)
    assert (result.get(), seen) == ("done", [(result.id, 0), (result.id, 1), (result.id, 2)])
    result = flaky.delay(5)
    assert (result.state, repr(result.info)) == ("FAILURE", "OSError('away')")
    with pytest.raises(Retry):
        flaky.apply((1,), throw=True)


def test_what_a_call_says_of_its_result_holds_for_its_retries(eager):
    """`ignore_result` of the call goes before the task's, also in the attempt that ends it."""
    eager.conf.task_store_eager_result = True

    @eager.task(bind=True, max_retries=1)
    def flaky(self):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return self.request.retries

    kept, ignored = flaky.delay(), flaky.apply_async(ignore_result=True)
    assert (kept.get(), ignored.get()) == (1, 1)
    assert [eager.backend.is_eager(result.id) for result in (kept, ignored)] == [True, False]


def test_the_request_of_an_eager_call(eager):
    """`self.request` has id, arguments, headers as attributes and the parent's ids; `current_task` is the task."""

    @eager.task(bind=True)
    def inner(self):
        return (self.request.id, self.request.root_id, self.request.parent_id)

    @eager.task(bind=True)
    def outer(self, a, *, b):
        assert current_task.name == self.name
        request = self.request
        facts = (request.is_eager, request.called_directly, request.args, request.kwargs, request.retries, request.get("trace"), request.headers)
        return request.id, facts, inner.delay().get(disable_sync_subtasks=False)

    task_id, facts, child = outer.apply_async((1,), {"b": 2}, task_id="mine", headers={"trace": "t-1"}).get()
    assert (task_id, facts) == ("mine", (True, False, (1,), {"b": 2}, 0, "t-1", {"trace": "t-1"}))
    assert child[1:] == ("mine", "mine")
    assert outer.request.id is None


def test_a_wait_inside_of_a_task_is_refused(eager):
    """`get` in a task raises RuntimeError unless the block allows it: in a worker it could wait for its own slot."""

    @eager.task
    def leaf():
        return 1

    @eager.task
    def waits():
        return leaf.delay().get()

    @eager.task
    def allowed():
        with allow_join_result():
            return leaf.delay().get()

    assert isinstance(waits.delay().info, RuntimeError)
    assert allowed.delay().get() == 1
    assert leaf.delay().get() == 1


def test_results_are_stored_on_request(eager):
    """`task_store_eager_result` lets AsyncResult(id) find the result in this process; without it the id is unknown to it."""

    @eager.task
    def add(a, b):
        return a + b

    eager.conf.task_store_eager_result = True
    stored = add.delay(1, 2)
    assert (AsyncResult(stored.id).state, AsyncResult(stored.id).get(), AsyncResult(stored.id).name) == ("SUCCESS", 3, add.name)
    stored.revoke()
    assert isinstance(stored.info, TaskRevokedError)


def test_links_run_after_it(eager):
    """`link` gets the result in front of its own arguments; `link_error` is called with request, exception and traceback, or with the id."""
    seen = []

    @eager.task
    def note(*args):
        seen.append(args)

    @eager.task
    def handler(request, exc, traceback):
        seen.append((request.id, repr(exc), "LookupError" in traceback))

    @eager.task
    def by_id(task_id):
        seen.append(task_id)

    @eager.task
    def work(fails):
        if fails:
            raise LookupError("gone")
        return "value"

    work.apply_async((False,), link=[note.s("b"), note.si("c")], link_error=handler.s())
    assert seen == [("value", "b"), ("c",)]
    seen.clear()
    work.apply_async((True,), task_id="f", link=note.s(), link_error=[handler.s(), by_id.s()])
    assert seen == [("f", "LookupError('gone')", True), "f"]


def test_hooks_and_signals_come_in_celerys_order(eager):
    """prerun, before_start, body, on_success, success, after_return, postrun; for a failure on_failure comes before the signal."""
    seen: list[tuple[Any, ...]] = []
    base: Any = eager.Task

    class Base(base):  # type: ignore[misc]
        def before_start(self, task_id, args, kwargs):
            seen.append(("before_start", task_id, args, kwargs))

        def on_success(self, retval, task_id, args, kwargs):
            seen.append(("on_success", retval))

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            seen.append(("on_failure", repr(exc), einfo.type.__name__))

        def on_retry(self, exc, task_id, args, kwargs, einfo):
            seen.append(("on_retry", repr(exc)))

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            seen.append(("after_return", status))

    for name in ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry"):

        def receive(signal, sender, name=name, **named):
            seen.append((name, sender.name, named.get("state"), named.get("result"), repr(named["exception"]) if "exception" in named else None))

        getattr(signals, name).connect(receive, weak=False)

    @eager.task(base=Base, name="work", bind=True, max_retries=1)
    def work(self, what):
        seen.append(("body",))
        if what == "fail":
            raise LookupError("gone")
        if what == "retry" and not self.request.retries:
            raise self.retry(exc=OSError("away"))
        if what == "ignore":
            raise Ignore
        return what

    def run(what):
        seen.clear()
        work.apply((what,), task_id="1")
        return [entry for entry in seen if entry != ("body",)]

    start: list[Any] = [("task_prerun", "work", None, None, None), ("before_start", "1", ("ok",), {})]
    ok = [*start, ("on_success", "ok"), ("task_success", "work", None, "ok", None), ("after_return", states.SUCCESS)]
    assert run("ok") == [*ok, ("task_postrun", "work", states.SUCCESS, None, None)]
    failed = [("on_failure", "LookupError('gone')", "LookupError"), ("task_failure", "work", None, None, "LookupError('gone')")]
    assert run("fail")[2:] == [*failed, ("after_return", states.FAILURE), ("task_postrun", "work", states.FAILURE, None, None)]
    assert run("retry")[2:5] == [("on_retry", "OSError('away')"), ("task_retry", "work", None, None, None), ("task_postrun", "work", states.RETRY, None, None)]
    assert run("ignore")[2:] == [("task_postrun", "work", states.IGNORED, None, None)]
