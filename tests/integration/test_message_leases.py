"""Who holds a message and for how long: leases, transactions of consumers, outages, forks and their ends."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import JobRunner, clock, consuming
from jobrunner.errors import LeaseLost
from tests.support.rows import Scene
from tests.support.waiting import wait_until

PATIENCE = 30  # seconds until a call that should come back is given up
SOON = 0.3  # seconds; by `extend`, so that the row of the consumer lives for as long as with the usual lease, whatever stands still


@pytest.fixture
def jobs(dsn):
    runner = JobRunner(dsn=dsn)
    yield runner
    runner.close()


@pytest.fixture
def queue(jobs):
    """A queue whose messages come back at once when they are given back."""
    return jobs.queue("emails", backoff="constant", backoff_base=0)


def hold_briefly(message):
    """Its lease is over soon: sooner than `extend` lets anybody ask for."""
    message._by.extend(message, SOON)


def states(connection):
    return dict(connection.execute("SELECT id, state FROM jobrunner.v_jobs").fetchall())


def test_a_message_held_for_longer_than_its_lease_comes_again(queue, connection):
    """Neither acknowledged nor extended in time it goes to somebody else, who has it alone: the first one's word is refused."""
    number = queue.put(1)
    first = queue.get()
    hold_briefly(first)
    second = queue.get(wait=PATIENCE)
    assert (second.id, second.attempt, second.redelivered) == (number, 2, True)
    wait_until(lambda: first.settled == "lost", timeout=PATIENCE, what="the first holder to know")
    with pytest.raises(LeaseLost):
        first.ack()
    second.ack()
    assert states(connection) == {number: "succeeded"}
    assert connection.execute("SELECT outcome FROM jobrunner.job_attempts").fetchall() == [("retried",)]


def test_an_extended_message_stays(queue, connection):
    """Extended, a message is held from then on for as long as was said; the row of its consumer is renewed meanwhile."""
    queue.put(1)
    message = queue.get(lease=12)
    message.extend(600)
    (consumer,) = queue._application.consumers.values()
    assert consumer._held[message.receipt].until > clock.monotonic() + 500
    renewed = "SELECT bool_and(heartbeat_at > started_at + interval '1 second') FROM jobrunner.workers"
    wait_until(lambda: connection.execute(renewed).fetchone() == (True,), timeout=PATIENCE, what="the row to be renewed")
    assert queue.get(wait=0) is None
    message.ack()


def test_a_message_without_a_lease_of_its_own_is_held_as_long_as_the_process_lives(queue):
    """`lease=None` is what a broker with connections does: no time is set."""
    queue.put(1)
    message = queue.get(lease=None)
    consumer = next(iter(queue._application.consumers.values()))
    assert [hold.until for hold in consumer._held.values()] == [float("inf")]
    message.ack()


def test_a_consumer_whose_row_was_given_up_loses_what_it_holds(queue, connection):
    """When others gave this process up (a pause, a partition), its messages are lost to it, and it begins anew."""
    queue.put(1)
    message = queue.get(lease=12)
    scene = Scene(connection)
    scene.execute("UPDATE jobrunner.workers SET lease_expires_at = now()")
    assert scene.store.rescue()[1] == 1
    wait_until(lambda: message.settled == "lost", timeout=PATIENCE, what="the consumer to notice")
    with pytest.raises(LeaseLost):
        message.ack()
    again = queue.get(wait=PATIENCE)
    assert again.id == message.id
    again.ack()
    assert connection.execute("SELECT count(*) FROM jobrunner.workers").fetchone() == (2,)


@pytest.mark.parametrize("commits", [True, False])
def test_acknowledging_in_the_consumers_transaction(queue, connection, commits):
    """What the consumer wrote and the end of the message commit together; after a rollback the message comes again."""
    connection.execute("CREATE TABLE IF NOT EXISTS public.sent (n int)")
    try:
        number = queue.put(1)
        engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
        message = queue.get()
        if not commits:
            hold_briefly(message)
        with Session(engine) as session:
            session.execute(sa.text("INSERT INTO public.sent VALUES (1)"))
            message.ack(session=session)
            if commits:
                session.commit()
        engine.dispose()
        if commits:
            assert states(connection) == {number: "succeeded"}
        else:
            assert queue.get(wait=PATIENCE).id == number
        assert connection.execute("SELECT count(*) FROM public.sent").fetchone() == (int(commits),)
    finally:
        connection.execute("DROP TABLE public.sent")


def test_an_open_acknowledgement_does_not_hold_up_the_lease(queue, connection):
    """While the transaction in which a message was acknowledged stays open past its lease, the consumer goes on renewing its row."""
    queue.put(1)
    engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
    message = queue.get()
    with Session(engine) as session:
        message.ack(session=session)
        hold_briefly(message)
        renewed = "SELECT bool_and(heartbeat_at > started_at + interval '6 seconds') FROM jobrunner.workers"
        wait_until(lambda: connection.execute(renewed).fetchone() == (True,), timeout=PATIENCE, what="the row to be renewed twice")
        session.commit()
    engine.dispose()
    assert set(states(connection).values()) == {"succeeded"}


@pytest.mark.parametrize("commits", [True, False])
def test_a_message_without_a_lease_is_acknowledged_elsewhere(queue, monkeypatch, commits):
    """What is held for as long as the process lives is forgotten once that transaction has committed, and comes again when it was rolled back."""
    monkeypatch.setattr(consuming, "ELSEWHERE", 0.05)
    number = queue.put(1)
    engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
    message = queue.get(lease=None)
    with Session(engine) as session:
        message.ack(session=session)
        if commits:
            session.commit()
        else:
            session.rollback()
    engine.dispose()
    (consumer,) = queue._application.consumers.values()
    if commits:
        wait_until(lambda: consumer._counts.succeeded == 1, timeout=PATIENCE, what="the consumer to look")
        assert (consumer._held, consumer._counts.failed, message.settled) == ({}, 0, "ack")
    else:
        assert queue.get(wait=PATIENCE).id == number


def test_an_open_acknowledgement_holds_up_no_other_message(queue):
    """A message whose lease is over goes to others, whatever else was acknowledged in a transaction that stays open."""
    queue.put_many(["elsewhere", "slow"])
    engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
    elsewhere, slow = queue.get_many(2)
    (consumer,) = queue._application.consumers.values()
    with Session(engine) as session:
        elsewhere.ack(session=session)
        with consumer._state:  # both at the same moment, so that they are given back together
            consumer._held.add((elsewhere, slow), clock.monotonic() + SOON)
            consumer._state.notify_all()
        assert queue.get(wait=PATIENCE).id == slow.id
        session.commit()
    engine.dispose()


def test_an_open_acknowledgement_holds_up_no_other_that_was_rolled_back(queue):
    """Of two messages that were acknowledged in transactions the one that was rolled back comes again, while the other one is open still."""
    queue.put_many(["open", "undone"])
    engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
    first, second = queue.get_many(2)
    with Session(engine) as stays, Session(engine) as fails:
        first.ack(session=stays)
        second.ack(session=fails)
        hold_briefly(first)
        hold_briefly(second)
        fails.rollback()
        assert queue.get(wait=PATIENCE).id == second.id
        assert first.settled == "ack"
        stays.commit()
    engine.dispose()


def test_a_message_that_cannot_be_given_back_does_not_cost_the_others_their_lease(queue, connection):
    """Whatever goes wrong with one message whose lease is over, the row of the consumer is renewed, and the others stay its own."""
    queue.put_many(["stuck", "mine"])
    stuck, mine = queue.get(lease=2), queue.get(lease=None)  # the row of the consumer lives for a second without a word
    connection.execute("CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not back''; END'")
    try:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON jobrunner.jobs FOR EACH ROW"
            " WHEN (OLD.state = 'running' AND NEW.state = 'queued') EXECUTE FUNCTION public.refuse()"
        )
        hold_briefly(stuck)
        renewed = "SELECT bool_and(heartbeat_at > started_at + interval '4 seconds') FROM jobrunner.workers"
        wait_until(lambda: connection.execute(renewed).fetchone() == (True,), timeout=PATIENCE, what="the row to be renewed for a while")
        mine.ack()
    finally:
        connection.execute("DROP FUNCTION public.refuse() CASCADE")
    assert queue.get(wait=PATIENCE).id == stuck.id
    assert stuck.settled == "lost"


def test_a_pool_without_a_free_connection_does_not_end_the_consumer(dsn):
    """While the application has all connections the lease may be lost; when it has given them back the consumer begins anew."""
    jobs = JobRunner(dsn=dsn)
    jobs.pool_size = 1
    queue = jobs.queue("emails", backoff="constant", backoff_base=0)
    number = queue.put(1)
    assert [message.id for message in queue.get_many(1, lease=2)] == [number]  # so that the row lives for a second without a word
    (consumer,) = jobs.consumers.values()
    ready, pool = jobs.database.ready, cast("Any", jobs.database.engine.pool)
    taken = [ready.take() for _ in range(2)]  # as many as there may be
    pool._timeout = 0.05
    before = consumer._beat_at
    wait_until(lambda: consumer._beat_at > before + 1, timeout=PATIENCE, what="the thread to have failed for longer than the lease")
    pool._timeout = PATIENCE
    for each in taken:
        ready.give(each)
    assert [message.id for message in queue.get_many(1, wait=PATIENCE)] == [number]
    jobs.close()


def test_a_message_that_is_being_given_back_is_not_extended(queue):
    """Once its lease is over and it is on its way back, `extend` comes too late, and says so."""
    queue.put(1)
    message = queue.get()
    (consumer,) = queue._application.consumers.values()
    with consumer._state:
        consumer._held.add([message], clock.monotonic())
        assert consumer._held.take_over(clock.monotonic(), clock.monotonic() + PATIENCE) == [message]
    with pytest.raises(LeaseLost):
        message.extend(60)


@pytest.mark.parametrize("place", ["session", "connection"])
def test_the_next_of_a_key_goes_when_the_consumers_transaction_commits(queue, monkeypatch, place):
    """A consumer that waits hears of it at that moment, and not by its next look."""
    monkeypatch.setattr(consuming, "POLL", 10 * PATIENCE)
    queue.put_many(["first", "second"], key="k")
    engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
    message = queue.get()
    with ThreadPoolExecutor(1) as threads, Session(engine) as session:
        waiting = threads.submit(queue.get, wait=PATIENCE)
        (consumer,) = queue._application.consumers.values()
        wait_until(lambda: consumer._claimer.next_at > clock.monotonic() + PATIENCE, timeout=PATIENCE, what="somebody to wait for long")
        where = {"session": session} if place == "session" else {"connection": session.connection()}
        message.ack(**where)
        session.commit()
        assert waiting.result(PATIENCE).body == "second"
    engine.dispose()


def test_an_acknowledgement_in_a_session_that_is_closed_is_no_job_that_was_lost(queue, caplog):
    """Only jobs that were enqueued are missed when a session ends without commit."""
    queue.put(1, key="k")
    engine = sa.create_engine(queue._database.dsn.sqlalchemy_url)
    message = queue.get()
    with Session(engine) as session:
        message.ack(session=session)
    engine.dispose()
    assert "enqueued" not in caplog.text


def test_who_waits_gets_what_comes(queue):
    """A waiting `get` returns soon after the put, and empty-handed when its time is over."""
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(queue.get, wait=PATIENCE)
        wait_until(lambda: any(consumer._waiting for consumer in queue._application.consumers.values()), timeout=PATIENCE, what="somebody to wait")
        number = queue.put("now")
        assert waiting.result(PATIENCE).id == number
    assert queue.get(wait=0.05) is None


def test_many_threads_share_the_messages_and_the_connections(queue, connection):
    """Ten threads take two hundred messages: each is given once, and the process has no more connections than its pool, an ear included."""
    ids = set(queue.put_many(range(200)))
    taken: list[int] = []

    def work():
        while (message := queue.get(wait=0.2)) is not None:
            with message:
                taken.append(message.id)

    with ThreadPoolExecutor(10) as threads:
        for future in [threads.submit(work) for _ in range(10)]:
            future.result(PATIENCE)
    assert (len(taken), set(taken)) == (200, ids)
    assert set(states(connection).values()) == {"succeeded"}
    assert connection.execute("SELECT count(*) FROM jobrunner.workers").fetchone() == (1,)


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
