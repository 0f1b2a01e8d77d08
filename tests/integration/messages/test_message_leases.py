"""Who holds a message and for how long: leases, and transactions of consumers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import JobRunner, clock, consuming
from jobrunner.errors import LeaseLost
from jobrunner.jobs import Ending
from jobrunner.settling import outcome_of
from jobrunner.store import Store
from tests.support.mail import PATIENCE, states
from tests.support.rows import Scene
from tests.support.waiting import wait_until

SOON = 0.3  # seconds; by `extend`, so that the row of the consumer lives for as long as with the usual lease, whatever stands still


def hold_briefly(message):
    """Its lease is over soon: sooner than `extend` lets anybody ask for."""
    message._by.extend(message, SOON)


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
    stuck, mine = queue.get(lease=8), queue.get(lease=None)  # the row of the consumer lives for four seconds without a word
    connection.execute("CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not back''; END'")
    try:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON jobrunner.jobs FOR EACH ROW"
            " WHEN (OLD.state = 'running' AND NEW.state = 'queued') EXECUTE FUNCTION public.refuse()"
        )
        hold_briefly(stuck)
        renewed = "SELECT bool_and(heartbeat_at > started_at + interval '6 seconds') FROM jobrunner.workers"
        wait_until(lambda: connection.execute(renewed).fetchone() == (True,), timeout=PATIENCE, what="the row to be renewed for longer than it lives")
        mine.ack()
    finally:
        connection.execute("DROP FUNCTION public.refuse() CASCADE")
    assert queue.get(wait=PATIENCE).id == stuck.id
    wait_until(lambda: stuck.settled == "lost", timeout=PATIENCE, what="its holder to know, which hears of it after the commit")


def test_an_acknowledgement_amid_the_giving_back_counts_once(queue, monkeypatch, caplog):
    """When its lease ends while it is acknowledged the message has succeeded, and nobody says that it was held for too long."""
    queue.put(1)
    message = queue.get()
    (consumer,) = queue._application.consumers.values()
    finish = Store.finish

    def finish_late(store, outcomes):
        refused = finish(store, outcomes)
        monkeypatch.setattr(Store, "finish", finish)
        consumer._give_back([message])
        return refused

    monkeypatch.setattr(Store, "finish", finish_late)
    message.ack()
    assert (consumer._counts.claimed, consumer._counts.succeeded, consumer._counts.failed, message.settled) == (1, 1, 0, "ack")
    assert "held for longer" not in caplog.text


def test_what_was_refused_is_not_counted(queue):
    """An acknowledgement of what somebody else has given back meanwhile is no success."""
    queue.put(1)
    message = queue.get()
    (consumer,) = queue._application.consumers.values()
    with queue._database.store() as store:
        assert store.finish([outcome_of(message.receipt, Ending.RETRY, delay=0)]) == []
    with pytest.raises(LeaseLost):
        message.ack()
    assert (consumer._counts.succeeded, consumer._counts.failed, consumer._held) == (0, 0, {})


def test_a_message_that_cannot_be_given_back_holds_up_no_other(queue, connection):
    """Of messages whose leases end at the same moment the others go to whoever wants them, whatever is wrong with one."""
    others = set(queue.put_many(range(5)))
    number = queue.put("stuck", priority=1)
    held = queue.get_many(6)
    (consumer,) = queue._application.consumers.values()
    connection.execute("CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not back''; END'")
    try:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON jobrunner.jobs FOR EACH ROW"
            " WHEN (OLD.priority = 1 AND OLD.state = 'running' AND NEW.state = 'queued') EXECUTE FUNCTION public.refuse()"
        )
        with consumer._state:
            consumer._held.add(held, clock.monotonic() + SOON)
            consumer._state.notify_all()
        assert {queue.get(wait=PATIENCE).id for _ in others} == others
        lost = [*["lost"] * len(others), None]
        wait_until(lambda: [message.settled for message in held] == lost, timeout=PATIENCE, what="the holder of the others to know")
    finally:
        connection.execute("DROP FUNCTION public.refuse() CASCADE")
    assert queue.get(wait=PATIENCE).id == number


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


def test_a_shorter_lease_is_written_soon_when_it_could_not_be_at_once(dsn, connection):
    """When the row cannot be told that it is to live briefly, the thread tries again soon, and not when the longer life needs a word."""
    jobs = JobRunner(dsn=dsn)
    jobs.pool_size = 1
    queue = jobs.queue("emails")
    queue.put(1)
    assert queue.get_many(1, lease=None)
    (consumer,) = jobs.consumers.values()
    ready, pool = jobs.database.ready, cast("Any", jobs.database.engine.pool)
    taken = [ready.take() for _ in range(2)]  # as many as there may be
    pool._timeout = 0.05
    with pytest.raises(sa.exc.TimeoutError):
        queue.get_many(1, lease=2, wait=0)
    assert consumer._beat_at <= clock.monotonic() + consuming.RETRY
    pool._timeout = PATIENCE
    for each in taken:
        ready.give(each)
    brief = "SELECT bool_and(lease_expires_at < heartbeat_at + interval '2 seconds') FROM jobrunner.workers"
    wait_until(lambda: connection.execute(brief).fetchone() == (True,), timeout=PATIENCE, what="the row to live briefly")
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
