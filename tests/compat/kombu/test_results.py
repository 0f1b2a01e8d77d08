"""The result backend: what is stored is found until its time is up, and counters count each part once."""

from __future__ import annotations

import contextlib
import threading

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult

from tests.support.celeries import url_of


@pytest.fixture
def backend(dsn):
    """The backend of an application, found by its address alone."""
    with Celery("shop", broker=url_of(dsn), backend=url_of(dsn), set_as_current=False) as app, contextlib.closing(app.backend) as found:
        yield found


def test_the_address_leads_to_our_backend(backend):
    """Celery finds it by its entry points."""
    assert type(backend).__module__ == "jobrunner.compat.kombu.results"
    assert backend.as_uri().startswith("jobrunner://")


def test_a_result_is_stored_replaced_and_forgotten(backend, connection):
    """By its key; for Celery's `result_expires`, which is a day."""
    backend.store_result("1", {"sum": 5}, "SUCCESS")
    assert (backend.get_state("1"), backend.get_result("1")) == ("SUCCESS", {"sum": 5})
    backend.store_result("2", ValueError("bad"), "FAILURE", traceback="…")
    assert isinstance(backend.get_result("2"), ValueError)
    assert dict(backend.get_many({"1"}, timeout=5))["1"]["result"] == {"sum": 5}
    kept = "SELECT expires_at - now() BETWEEN interval '23 h' AND interval '24 h' FROM jobrunner.broker_results"
    assert set(connection.execute(kept).fetchall()) == {(True,)}
    backend.forget("1")
    assert backend.get_state("1") == "PENDING"


def test_an_expired_result_is_not_found_and_swept(backend, connection):
    """As soon as its time is up; the row goes with the next sweep."""
    backend.set("a", b"1")
    backend.set("b", b"2")
    backend.expire("a", 0.001)
    connection.execute("UPDATE jobrunner.broker_results SET expires_at = now() - interval '1 ms' WHERE key = 'a'")
    assert backend.mget(["b", "a"]) == [b"2", None]
    backend.cleanup()
    assert connection.execute("SELECT key FROM jobrunner.broker_results").fetchall() == [("b",)]


def test_each_part_of_a_chord_gets_a_number_of_its_own(backend):
    """However many end at once."""
    numbers: list[int] = []

    def end_parts():
        numbers.extend(backend.incr("chord") for _ in range(25))

    threads = [threading.Thread(target=end_parts) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 101))


@pytest.mark.parametrize("when", ["before it is asked for", "before the first look", "between two looks"])
def test_a_chord_raises_what_its_part_raised(backend, when):
    """`get()` of the body, whenever part and body fail: Celery says the body failed with a ChordError, and looks at the parts before that."""
    part = AsyncResult("part", backend=backend, app=backend.app)
    body = AsyncResult("body", backend=backend, app=backend.app, parent=GroupResult("parts", [part], app=backend.app))

    def fail():
        backend.store_result("part", KeyError("no such apple"), states.FAILURE)
        backend.store_result("body", ChordError("Dependency part raised KeyError('no such apple')"), states.FAILURE)

    look, looks = backend.get_task_meta, []

    def looks_at(task_id, **options):
        looks.append(task_id)
        if (when, looks) in (("before the first look", ["part", "body"]), ("between two looks", ["part", "body", "part", "body"])):
            fail()
        return look(task_id, **options)

    backend.get_task_meta = looks_at
    if when == "before it is asked for":
        fail()
    with pytest.raises(KeyError, match="no such apple"):
        body.get(timeout=5, interval=0.01)
    with pytest.raises(ChordError, match="Dependency part raised"):
        body.get(timeout=5, follow_parents=False)
    assert isinstance(body.result, ChordError)


@pytest.mark.parametrize("failed", [["two"], ["three", "two"], ["two", "three"]])
def test_a_failed_chord_names_its_first_failed_part(backend, failed, connection):
    """In the header's order, groups within it included, in whatever order they failed; and nothing of its counts is left."""
    app = backend.app
    one, two, three = (AsyncResult(name, backend=backend, app=app) for name in ("one", "two", "three"))
    GroupResult("parts", [one, GroupResult("inner", [two], app=app), three], app=app).save(backend=backend)
    backend.set_chord_size("parts", 3)
    body = app.signature("total", task_id="body")
    for name in (*failed, *({"one", "two", "three"} - {*failed})):
        state = states.FAILURE if name in failed else states.SUCCESS
        result = KeyError(name) if name in failed else 1
        backend.store_result(name, result, state)
        assert backend.get_state("body") == states.PENDING
        backend.on_chord_part_return(Context(id=name, group="parts", chord=body), state, result)
    assert backend.get_state("body") == states.FAILURE
    assert str(backend.get_result("body")) == "Dependency two raised KeyError('two')"
    left = "SELECT key FROM jobrunner.broker_results WHERE key NOT LIKE 'celery-task-meta-%'"
    assert connection.execute(left).fetchall() == []


def test_a_part_that_runs_twice_is_one_part(backend, connection):
    """Its second run neither completes the chord nor, after the end, begins it anew; what a process did not live to join it joins."""
    app = backend.app
    sent: list[list[int]] = []

    @app.task(name="total", shared=False)
    def total(numbers):
        raise AssertionError(numbers)

    total.apply_async = lambda args, *_, **__: sent.append(args[0])
    results = [AsyncResult(name, backend=backend, app=app) for name in ("one", "two")]
    body = app.signature("total", task_id="body")
    backend.apply_chord(("parts", results), body)
    backend.set_chord_size("parts", 2)

    def end(name, value):
        backend.store_result(name, value, states.SUCCESS)
        backend.on_chord_part_return(Context(id=name, group="parts", chord=body), states.SUCCESS, value)

    end("one", 1)
    end("one", 1)
    assert (sent, backend.get_state("body")) == ([], states.PENDING)
    restored, backend.restore_group = backend.restore_group, lambda *_, **__: 1 / 0  # a process that dies as it begins to join
    with pytest.raises(ZeroDivisionError):
        end("two", 2)
    backend.restore_group = restored
    end("two", 2)
    assert sent == [[1, 2]]
    left = "SELECT key FROM jobrunner.broker_results WHERE key NOT LIKE 'celery-task-meta-%'"
    assert connection.execute(left).fetchall() == []
    end("two", 2)
    assert sent == [[1, 2]]


def test_what_is_called_between_looks_is_called_for_a_result_that_is_there(backend):
    """At least once, as with Redis."""
    backend.store_result("1", 5, states.SUCCESS)
    calls: list[str] = []
    assert AsyncResult("1", backend=backend, app=backend.app).get(timeout=5, on_interval=lambda: calls.append("look")) == 5
    assert calls == ["look"]
