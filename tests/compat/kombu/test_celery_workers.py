"""Real `celery worker` processes of an application in which only the broker's address is ours."""

from __future__ import annotations

import contextlib
import functools
import signal
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group, states
from celery.exceptions import ChordError
from kombu import Queue

from tests.support.celeries import ADD, MODULE, PATIENCE, TOTAL, celery_worker
from tests.support.waiting import wait_until

SHORT = {"lease": 2.0}  # seconds; only where there is nobody to take anything away from a healthy worker that stalls
STEADY = {"lease": 6.0}  # seconds, with a heartbeat every two: a stall of three is no loss
TASKS_LEFT = "SELECT (message->>'body')::json->0->>0 FROM jobrunner.broker_messages WHERE task IS NOT NULL"


def test_an_app_runs_by_changing_its_url(shop):
    """Prefork children run tasks, send others from inside, retry, join chords and answer, without an import of ours in the app."""
    own = shop()
    with celery_worker(own, "one", "-c", "2") as worker:
        assert own.send("add", 2, 3).get(timeout=PATIENCE) == 5
        own.send("passes_on", 7)
        assert own.send("stubborn", 8).get(timeout=PATIENCE) == 8
        parts = [own.app.signature(ADD, args=(number, number)) for number in range(5)]
        assert chord(parts, app=own.app)(own.app.signature(TOTAL)).get(timeout=PATIENCE) == 20
        own.ledger.wait_for_ends(2, PATIENCE)
        assert worker.stop() == 0
    assert own.ledger.count("start") == {"7": 1, "8": 2}
    assert own.rows("SELECT count(*) FROM jobrunner.broker_messages WHERE task IS NOT NULL") == [(0,)]
    assert own.rows("SELECT count(*) FROM jobrunner.broker_consumers") == [(0,)]


def test_a_chord_waits_for_groups_in_its_group(shop):
    """All parts are waited for, those of inner groups and those that were added too; a worker with one child would else wait for itself."""
    own = shop()
    add = functools.partial(own.app.signature, ADD, immutable=True)
    with celery_worker(own, "one", "-c", "1"):
        inner = chain(add(args=(1, 2)), group(add(args=(1, 3)), add(args=(1, 4)), app=own.app), app=own.app)
        nested = chord([add(args=(1, 1)), inner], app=own.app)(own.app.signature(TOTAL, args=([7, 8],), immutable=True))
        assert nested.get(timeout=PATIENCE) == 15
        adding = own.app.signature(f"{MODULE}.adds_parts", args=([20, 21],))
        assert chord([adding, add(args=(0, 1))], app=own.app)(own.app.signature(TOTAL)).get(timeout=PATIENCE) == 42
    assert own.rows("SELECT key FROM jobrunner.broker_results WHERE key LIKE 'chord-unlock-%done'") == []


def test_a_chord_of_a_generator_is_sent_as_it_is_made(shop):
    """The first parts run before the last one is made, as with Redis; results come in the generator's order, and failures are told."""
    own = shop()
    sell = functools.partial(own.app.signature, f"{MODULE}.sell", immutable=True)

    def header(last):
        yield sell(args=(1, 0.5))
        yield sell(args=(2,))
        yield sell(args=(3,))
        yield own.app.signature(f"{MODULE}.adds_parts", args=([7],))
        own.ledger.wait_for_ends(1, PATIENCE)
        yield last

    with celery_worker(own, "one", "-c", "2"):
        done = chord(header(sell(args=(4,))), app=own.app)(own.app.signature(f"{MODULE}.echo"))
        assert done.get(timeout=PATIENCE) == [1, 2, 3, 0, 4, 7]
        failed = chord(header(own.app.signature(f"{MODULE}.divide", args=(1, 0))), app=own.app)(own.app.signature(TOTAL))
        with pytest.raises(ZeroDivisionError):
            failed.get(timeout=PATIENCE)
        with pytest.raises(ChordError, match=r"^Dependency \S+ raised ZeroDivisionError"):
            failed.get(timeout=PATIENCE, follow_parents=False)
        counts = "SELECT key FROM jobrunner.broker_results WHERE key NOT LIKE 'celery-task-meta-%'"
        wait_until(lambda: own.rows(counts) == [], timeout=PATIENCE, what="the counts to be gone")


@pytest.mark.parametrize("parts", ["task", "chain", "group"])
def test_a_chord_fails_with_what_its_part_raised(shop, parts):
    """As with Redis: `get()` raises the part's own exception, the body's result says which part it was, and its errback runs once."""
    own = shop()
    add, divide = (functools.partial(own.app.signature, f"{MODULE}.{name}", immutable=True) for name in ("add", "divide"))
    failing = divide(args=(1, 0))
    header = {
        "task": [add(args=(1, 1)), failing],
        "chain": [add(args=(1, 1)), chain(add(args=(1, 2)), failing, add(args=(1, 3)), app=own.app)],
        "group": [add(args=(1, 1)), chain(add(args=(1, 2)), group(add(args=(1, 3)), failing, app=own.app), app=own.app)],
    }[parts]
    with celery_worker(own, "one", "-c", "2"):
        body = own.app.signature(TOTAL).on_error(own.app.signature(f"{MODULE}.regret"))
        result = chord(header, app=own.app)(body)
        with pytest.raises(ZeroDivisionError):
            result.get(timeout=PATIENCE)
        with pytest.raises(ChordError, match=r"^Dependency \S+ raised ZeroDivisionError") as caught:
            result.get(timeout=PATIENCE, follow_parents=False)
        assert own.app.AsyncResult(str(caught.value).split()[1]).state == states.FAILURE
        wait_until(lambda: own.ledger.count("regret"), timeout=PATIENCE, what="the errback to have run")
        own.wait_until_empty()
    assert own.ledger.count("regret") == {result.id: 1}


@pytest.mark.chaos
def test_nothing_is_lost_or_doubled_by_kill_9(shop):
    """With late acknowledgement a killed worker's tasks run on another one after the lease; what was acknowledged does not run again."""
    own = shop(task_acks_late=True, broker_transport_options=SHORT)
    for number in range(10):
        own.send("sell", number, 2.0)
    with celery_worker(own, "one", "-c", "2") as first:
        wait_until(lambda: len(own.ledger.count("start")) >= 3, timeout=PATIENCE, what="some tasks to have begun")
        first.kill()
    ended, begun = set(own.ledger.count("end")), set(own.ledger.count("start"))
    left = {str(number) for (number,) in own.rows(TASKS_LEFT)}
    unheard = ended & left  # done, and killed before it could say so
    assert len(ended) < 10
    assert len(unheard) <= 2
    assert left | ended == set("0123456789")
    with celery_worker(own, "two", "-c", "2"):
        own.ledger.wait_for_ends(10, PATIENCE)
        own.wait_until_empty()
    assert own.ledger.count("end") == {number: 2 if number in unheard else 1 for number in "0123456789"}
    assert {number for number, count in own.ledger.count("start").items() if count > 1} == begun & left


def test_a_task_longer_than_the_lease_runs_once(shop):
    """The lease of a healthy worker is renewed: a task of several leases is given to nobody else, also not to one who is idle."""
    own = shop(task_acks_late=True, worker_prefetch_multiplier=1, broker_transport_options=STEADY)
    with celery_worker(own, "one", "-c", "1"), celery_worker(own, "two", "-c", "1"):
        own.send("sell", 1, 14.0)
        own.ledger.wait_for_ends(1, PATIENCE)
        own.wait_until_empty()
    assert own.ledger.count("start") == {"1": 1}


def test_an_eta_waits_in_the_database(shop):
    """A task for later is with no worker until it is due, however many leases that takes, and then runs once."""
    own = shop(task_acks_late=True, broker_transport_options=STEADY)
    with celery_worker(own, "one", "-c", "1"), celery_worker(own, "two", "-c", "1"):
        due = datetime.now(UTC) + timedelta(seconds=8)
        own.send("sell", 1, eta=due)
        waiting = "SELECT consumer_id IS NULL, lease, abs(extract(epoch FROM available_at - '{}')) < 1 FROM jobrunner.broker_messages WHERE task IS NOT NULL"
        held = wait_until(lambda: own.rows(waiting.format(due.isoformat())), timeout=PATIENCE, what="the message")
        assert held == [(True, 0, True)]
        own.ledger.wait_for_ends(1, PATIENCE)
        assert datetime.now(UTC) >= due - timedelta(seconds=0.5)  # two clocks of one machine
        own.wait_until_empty()
    assert own.ledger.count("start") == {"1": 1}


def test_remote_control_answers(shop):
    """`inspect` ping, active, registered and stats, and `purge`, as commands and by Celery's API; the password is in no answer."""
    own = shop()
    with celery_worker(own, "one", "-c", "1", "-Q", "celery,other") as worker:
        assert "1 node online" in own.command("inspect", "ping", "-d", worker.name, "-t", str(PATIENCE))
        own.send("sell", 1, 8.0)
        wait_until(lambda: own.ledger.count("start"), timeout=PATIENCE, what="the task to run")
        inspect = own.app.control.inspect(timeout=PATIENCE, limit=1)
        active = inspect.active()[worker.name]
        assert [task["args"] for task in active] == [[1, 8.0]]
        assert ADD in inspect.registered()[worker.name]
        broker = inspect.stats()[worker.name]["broker"]
        assert (broker["transport"], "password" in broker) == ("jobrunner", False)
        assert {queue["name"] for queue in inspect.active_queues()[worker.name]} == {"celery", "other"}
        own.app.control.cancel_consumer("celery", destination=[worker.name], reply=True, timeout=PATIENCE, limit=1)
        left = wait_until(lambda: _without(inspect, worker, "celery"), timeout=PATIENCE, what="the worker to leave the queue")
        assert left == {"other"}
        for number in range(3):
            own.send("sell", 10 + number)
        assert "Purged 3 messages" in own.command("purge", "-f", "-Q", "celery")
        own.ledger.wait_for_ends(1, PATIENCE)
    assert own.ledger.count("start") == {"1": 1}


def test_events_reach_a_receiver(shop):
    """What Flower and `celery events` listen to: a receiver in another process hears of each step of a task."""
    own = shop()
    heard: list[str] = []
    steps = {"task-received", "task-started", "task-succeeded", "worker-heartbeat"}
    with celery_worker(own, "one", "-c", "1", "-E"), own.app.connection_for_read() as connection:
        receiver = own.app.events.Receiver(connection, handlers={"*": lambda event: heard.append(event["type"])})
        with receiver.consumer_context() as (listening, _, _):
            own.send("add", 1, 1)
            wait_until(lambda: steps <= set(heard) or _drain(listening), timeout=PATIENCE, what=f"{steps} to be heard")


def _without(inspect, worker, queue):
    queues = {found["name"] for found in inspect.active_queues()[worker.name]}
    return queues if queue not in queues else None


def _drain(connection):
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.5)
    return False


def test_an_expired_task_is_revoked_and_not_dropped(shop):
    """Celery itself marks it: whoever waits for the result gets an answer."""
    own = shop()
    result = own.send("sell", 1, expires=0.2)
    kept = own.send("sell", 2, expires=600)
    wait_until(lambda: own.rows("SELECT 1 FROM jobrunner.broker_messages WHERE published_at < now() - interval '1 s'"), timeout=PATIENCE, what="time to pass")
    with celery_worker(own, "one", "-c", "1"):
        assert kept.get(timeout=PATIENCE) == 2
        wait_until(lambda: result.state == states.REVOKED, timeout=PATIENCE, what="the task to be revoked")
    assert own.ledger.count("start") == {"2": 1}


def test_the_most_urgent_first(shop):
    """A worker with one slot takes what waits in the order of its priorities, the highest first."""
    own = shop(worker_prefetch_multiplier=1, task_acks_late=True)
    for number in range(9):
        own.send("sell", number, priority=[3, 9, 0][number % 3])
    with celery_worker(own, "one", "-c", "1"):
        own.ledger.wait_for_ends(9, PATIENCE)
    assert [number for event, number, _, _ in own.ledger.lines() if event == "start"] == list("147036258")


def test_a_worker_that_stops_gives_back_at_once(shop):
    """What was prefetched and has not begun is due again without a lease going by."""
    own = shop(worker_prefetch_multiplier=10, broker_transport_options={"lease": 600.0})
    with celery_worker(own, "one", "-c", "1") as first:
        for number in range(6):
            own.send("sell", number, 1.0)
        wait_until(lambda: own.ledger.count("start"), timeout=PATIENCE, what="a task to run")
        assert first.stop() == 0
    left = 6 - sum(own.ledger.count("end").values())
    assert own.rows("SELECT count(*) FROM jobrunner.broker_messages WHERE consumer_id IS NULL AND task IS NOT NULL") == [(left,)]
    with celery_worker(own, "two", "-c", "1"):
        own.ledger.wait_for_ends(6, PATIENCE)
    assert own.ledger.count("start") == {str(number): 1 for number in range(6)}


@pytest.mark.chaos
def test_a_paused_worker_loses_what_it_holds_and_connects_anew(shop):
    """A worker that stood still for longer than its lease finds its messages with others, says so, and goes on with new ones."""
    own = shop(task_acks_late=True, worker_prefetch_multiplier=1, broker_transport_options={"lease": 1.0})
    with celery_worker(own, "one", "-c", "1") as first:
        for number in range(4):
            own.send("sell", number, 1.0)
        wait_until(lambda: own.ledger.count("start"), timeout=PATIENCE, what="a task to run")
        first.signal(signal.SIGSTOP)
        with celery_worker(own, "two", "-c", "1"):
            own.wait_until_empty()
        assert set(own.ledger.count("end")) == set("0123")
        first.signal(signal.SIGCONT)
        assert own.send("add", 1, 2).get(timeout=PATIENCE) == 3
    begun = own.ledger.count("start")
    assert max(begun.values()) <= 2
    assert sum(count == 2 for count in begun.values()) <= 1  # the one that it held when it was paused


def test_a_queue_of_rabbitmq_settings_is_taken(shop):
    """Declared queues with arguments, another exchange and a routing key work as they are."""
    own = shop()
    own.app.conf.task_queues = [Queue("letters", routing_key="mail.#", exchange="mails", queue_arguments={"x-max-priority": 10})]
    own.send("add", 1, 1, queue="letters")
    assert own.rows("SELECT exchange, routing_key, queue, kind FROM jobrunner.broker_bindings") == [("mails", "mail.#", "letters", "direct")]
    assert own.rows("SELECT queue, task FROM jobrunner.broker_messages") == [("letters", ADD)]
