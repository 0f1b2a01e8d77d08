"""How consumers end and go on: deaths, closing, idleness, forks and outages."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import psycopg
import pytest

from jobrunner import JobRunner, clock, consuming
from jobrunner.claimer import Claimer
from jobrunner.messagestore import MessageStore
from tests.support.mail import PATIENCE, states
from tests.support.rows import Scene
from tests.support.waiting import wait_until


def test_consumers_that_die_with_a_message_make_it_dead(jobs, connection):
    """A message that takes its consumers down with it is quarantined after `max_deliveries` deaths in a row, and can be redriven."""
    queue = jobs.queue("emails", max_deliveries=2, backoff="constant", backoff_base=0)
    number = queue.put("poison")
    scene = Scene(connection)
    for _ in range(2):
        assert [message.id for message in queue.pull(lease=60)] == [number]
        scene.execute("UPDATE jobrunner.workers SET lease_expires_at = now() WHERE stopped_at IS NULL")
        assert scene.store.rescue()[1] == 1
    assert [(letter.id, letter.state) for letter in queue.dead.list()] == [(number, "quarantined")]
    assert queue.dead.redrive([number]) == 1
    assert queue.get().attempt == 1


def test_closing_gives_back_what_is_held(dsn, connection):
    """A JobRunner that is closed gives its messages back and closes its consumers' rows."""
    jobs = JobRunner(dsn=dsn)
    queue = jobs.queue("emails")
    number = queue.put(1)
    (message,) = queue.get_many(1)
    jobs.close()
    assert message.settled == "lost"
    assert states(connection) == {number: "retrying"}
    assert connection.execute("SELECT last_exit, kind FROM jobrunner.v_workers").fetchall() == [("done", "consumer")]
    (again,) = queue.get_many(1)
    assert (again.id, again.attempt) == (number, 2)
    jobs.close()


def test_closing_ends_the_waits(dsn, connection):
    """Who waits for a message while the JobRunner is closed gets none, a loop ends, and nobody opens a connection once more."""
    jobs = JobRunner(dsn=dsn)
    queue = jobs.queue("emails")
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(queue.get, wait=PATIENCE)
        loop = threads.submit(lambda: list(queue.consume(idle=PATIENCE)))
        wait_until(lambda: [each._waiting for each in jobs.consumers.values()] == [2], timeout=PATIENCE, what="both to wait")
        began = clock.monotonic()
        jobs.close()
        assert (one.result(PATIENCE), loop.result(PATIENCE)) == (None, [])
        assert clock.monotonic() - began < PATIENCE / 2
    assert jobs._database is None
    pooled = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobrunner'"
    wait_until(lambda: connection.execute(pooled).fetchone() == (0,), timeout=PATIENCE, what="the pool to be closed")
    queue.put(1)
    assert queue.get() is not None  # the next use begins anew
    jobs.close()


def test_closing_ends_a_loop_that_is_at_a_message(dsn):
    """Closed while its body runs the loop ends there: it takes no further message, and opens no connection for one."""
    jobs = JobRunner(dsn=dsn)
    queue = jobs.queue("emails")
    queue.put_many(["first", "second"])
    seen = []
    for message in queue.consume(idle=0):
        seen.append(message.body)
        jobs.close()
    assert seen == ["first"]
    assert jobs._database is None


def test_closing_without_a_free_connection_closes_the_rest(dsn):
    """While the application has all connections nothing can be given back; the JobRunner is closed all the same."""
    jobs = JobRunner(dsn=dsn)
    jobs.pool_size = 1
    queue = jobs.queue("emails")
    queue.put(1)
    (message,) = queue.get_many(1, lease=None)
    ready, pool = jobs.database.ready, cast("Any", jobs.database.engine.pool)
    taken = [ready.take() for _ in range(2)]  # as many as there may be
    pool._timeout = 0.05
    jobs.close()
    for each in taken:
        ready.give(each)
    assert message.settled == "lost"
    assert (jobs.consumers, jobs._database) == ({}, None)


def test_closing_amid_a_look(jobs, connection, monkeypatch):
    """A look that waits for a connection longer than `close` waits for it takes nothing any more, and leaves neither a row nor a thread."""
    monkeypatch.setattr(consuming, "RETRY", 0.05)
    jobs.pool_size = 1
    queue = jobs.queue("emails")
    number = queue.put(1)
    ready = jobs.database.ready
    taken = [ready.take() for _ in range(2)]  # as many as there may be
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(queue.get, wait=PATIENCE)
        wait_until(lambda: [each._taking.locked() for each in jobs.consumers.values()] == [True], timeout=PATIENCE, what="the look")
        (consumer,) = jobs.consumers.values()
        consumer.close()
        for each in taken:
            ready.give(each)
        assert waiting.result(PATIENCE) is None
    assert states(connection) == {number: "queued"}
    assert connection.execute("SELECT count(*) FROM jobrunner.workers").fetchone() == (0,)
    assert consumer._thread is None


@pytest.mark.parametrize("when", ["register_worker", "claim"])
def test_closing_while_a_look_is_at_the_database(jobs, connection, monkeypatch, when):
    """What such a look still does is undone: its row is closed, and what it has claimed goes back without a delivery used up."""
    monkeypatch.setattr(consuming, "RETRY", 0.05)
    queue = jobs.queue("emails")
    number = queue.put(1)
    done = getattr(MessageStore, when)

    def do_and_close(store, *args, **given):
        answer = done(store, *args, **given)
        monkeypatch.setattr(MessageStore, when, done)
        (consumer,) = jobs.consumers.values()
        consumer.close()
        return answer

    monkeypatch.setattr(MessageStore, when, do_and_close)
    assert queue.get(wait=PATIENCE) is None
    assert connection.execute("SELECT state, attempt FROM jobrunner.jobs WHERE id = %s", (number,)).fetchone() == ("queued", 0)
    assert connection.execute("SELECT count(*), count(stopped_at) FROM jobrunner.workers").fetchone() == (1, 1)


def test_an_acknowledgement_waits_for_no_look(queue):
    """While a look of another thread waits for a connection, a message with a key is settled all the same, and the next one goes."""
    queue.put_many(["first", "second"], key="k")
    message = queue.get()
    (consumer,) = queue._application.consumers.values()
    with ThreadPoolExecutor(1) as threads, consumer._taking:  # let go of it before the thread is waited for
        threads.submit(message.ack).result(PATIENCE)
    assert queue.get(wait=PATIENCE).body == "second"


def test_the_lease_is_renewed_while_somebody_looks(queue, connection):
    """However long a look waits for a connection, what is held stays held."""
    queue.put(1)
    message = queue.get()
    (consumer,) = queue._application.consumers.values()
    with consumer._taking:
        renewed = "SELECT bool_and(heartbeat_at > started_at + interval '1 second') FROM jobrunner.workers"
        wait_until(lambda: connection.execute(renewed).fetchone() == (True,), timeout=PATIENCE, what="the row to be renewed")
    message.ack()


def test_what_is_claimed_for_a_row_that_is_given_up_meanwhile_goes_back(queue, connection, monkeypatch):
    """Nobody would renew the lease of such a message: it is not handed out, and the next look has it anew."""
    number = queue.put(1)
    claim = Claimer.claim

    def claim_and_lose(claimer, store, worker_id, room):
        jobs = claim(claimer, store, worker_id, room)
        if jobs:
            monkeypatch.setattr(Claimer, "claim", claim)
            (consumer,) = queue._application.consumers.values()
            Scene(connection).execute("UPDATE jobrunner.workers SET lease_expires_at = now()")
            consumer._beat(store)
        return jobs

    monkeypatch.setattr(Claimer, "claim", claim_and_lose)
    message = queue.get(wait=PATIENCE)
    assert (message.id, message.attempt) == (number, 1)
    assert connection.execute("SELECT count(*) FROM jobrunner.workers").fetchone() == (2,)
    message.ack()


def test_an_idle_consumer_leaves(queue, connection, monkeypatch):
    """A process that takes nothing for a while closes its row and its thread, and begins anew with the next `get`."""
    monkeypatch.setattr(consuming, "IDLE", 0.05)
    assert queue.get(wait=0) is None
    left = "SELECT count(*) FROM jobrunner.workers WHERE stopped_at IS NOT NULL"
    wait_until(lambda: connection.execute(left).fetchone() == (1,), timeout=PATIENCE, what="the row to be closed")
    wait_until(lambda: not any(thread.name == "jobrunner-consumer" for thread in threading.enumerate()), timeout=PATIENCE, what="the thread to end")
    queue.put(1)
    assert queue.get() is not None


def test_a_forked_child_begins_anew(queue, connection):
    """After a fork what is held is the parent's; the child takes messages by a row of its own, and the parent's connections still work."""
    queue.put_many(["parent", "child"])
    parent = queue.get()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            message = queue.get(wait=PATIENCE)
            message.ack()
            code = 0 if message.body == "child" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    parent.ack()
    assert set(states(connection).values()) == {"succeeded"}
    assert connection.execute("SELECT count(DISTINCT pid) FROM jobrunner.workers WHERE kind = 'consumer'").fetchone() == (2,)


def test_a_fork_amid_a_close(dsn):
    """A child has no lock of a consumer that another thread was closing at that moment: its own end, which closes all, waits for nobody."""
    jobs = JobRunner(dsn=dsn)
    queue = jobs.queue("emails")
    assert queue.get(wait=0) is None
    (consumer,) = jobs.consumers.values()
    jobs.consumers = {}  # as `close` begins
    with ThreadPoolExecutor(1) as threads:
        threads.submit(consumer._state.acquire).result(PATIENCE)
        pid = os.fork()
        if pid == 0:
            free = consumer._state.acquire(timeout=1)
            os._exit(0 if free else 1)
        threads.submit(consumer._state.release).result(PATIENCE)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    consumer.close()
    jobs.close()


def test_a_claim_whose_answer_never_came_goes_back(queue, connection):
    """What was claimed when the connection broke, and nobody here knows of, is given back by the next look."""
    queue.put(1)
    assert queue.get(wait=0).id
    number = queue.put(2)
    (consumer,) = queue._application.consumers.values()
    connection.execute(
        "UPDATE jobrunner.jobs SET state = 'running', worker_id = %s, lease = lease + 1, claimed_at = now(), attempt = 1 WHERE id = %s",
        (consumer._worker_id, number),
    )
    consumer._in_doubt = True
    message = queue.get(wait=PATIENCE)
    assert (message.id, message.attempt) == (number, 1)


def test_a_consumer_survives_an_outage(jobs, connection):
    """When its connections are cut, the consumer connects again and goes on; what it held it holds still."""
    queue = jobs.queue("emails")
    queue.put_many(["a", "b"])
    held = queue.get(lease=20)
    connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name LIKE 'jobrunner%'")

    def took():
        try:
            return queue.get_many(1, wait=0)
        except psycopg.OperationalError:
            return []

    (other,) = wait_until(took, timeout=PATIENCE, what="the next message")
    assert other.body == "b"
    held.ack()
