"""The result backend: what is stored is found until its time is up, and counters count each part once."""

from __future__ import annotations

import contextlib
import threading

import pytest
from celery import Celery

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
