"""A message named by its receipt or by itself: settled and held for longer by whoever has it, wherever it was given."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner import JobRunner, clock
from jobrunner.envelopes import Receipt
from jobrunner.errors import ConfigurationError, IllegalTransition, LeaseLost
from jobrunner.states import State
from tests.support.mail import PATIENCE, states
from tests.support.rows import LEASE, Scene


def test_a_pull_is_settled_by_its_receipt(queue, connection):
    """What was pulled is held for whoever has the receipt, in whatever process; nothing of the pull is left once it is settled."""
    numbers = queue.put_many(["a", "b", "c"])
    messages = queue.pull(3, lease=60)
    assert [message.id for message in messages] == list(numbers)
    first, second, third = (str(message.receipt) for message in messages)
    queue.ack(first)
    queue.nack(second, delay=0, reason="later")
    queue.extend(third, 600)
    assert connection.execute("SELECT count(*) FROM jobrunner.workers WHERE lease_expires_at > now() + interval '5 minutes'").fetchone() == (1,)
    queue.dead_letter(third, "no")
    assert states(connection) == {numbers[0]: "succeeded", numbers[1]: "retrying", numbers[2]: "failed"}
    assert connection.execute("SELECT count(*) FROM jobrunner.workers").fetchone() == (0,)
    for settle in (queue.ack, queue.nack, lambda receipt: queue.extend(receipt, 5)):
        with pytest.raises(LeaseLost):
            settle(first)
    for nonsense in ("", "7", "0-1", "a-b", "1-99999999999999999999"):
        with pytest.raises(ConfigurationError, match="receipt"):
            queue.ack(nonsense)


def test_a_receipt_is_good_for_messages_of_its_queue_only(jobs, queue, connection):
    """A receipt can be made up: with it nobody ends or holds a job that a worker runs, nor a message of another queue."""
    job_id = Scene(connection).job(State.RUNNING, queue="emails")
    jobs.queue("others").put(1)
    (message,) = jobs.queue("others").pull(lease=60)
    for receipt in (Receipt(job_id, LEASE), message.receipt):
        for settle in (queue.ack, queue.nack, lambda each: queue.dead_letter(each, "no"), lambda each: queue.extend(each, 7200)):
            with pytest.raises(LeaseLost):
                settle(receipt)
    assert states(connection) == {job_id: "running", message.id: "running"}
    assert connection.execute("SELECT count(*) FROM jobrunner.workers WHERE lease_expires_at > now() + interval '90 minutes'").fetchone() == (0,)
    message.ack()


def test_a_receipt_settles_what_a_process_holds_and_leaves_it_its_row(queue, connection):
    """A message that a process took may be settled elsewhere by its receipt; the process goes on under the row that it has."""
    queue.put(1)
    message = queue.get()
    queue.ack(str(message.receipt))
    assert connection.execute("SELECT kind, stopped_at IS NULL FROM jobrunner.workers").fetchall() == [("consumer", True)]
    (consumer,) = queue._application.consumers.values()
    assert consumer._held == {}
    with pytest.raises(LeaseLost):
        message.ack()


def test_the_verbs_of_a_queue_take_messages_too(jobs, queue, connection):
    """`queue.ack(message)` is `message.ack()`, and so the others; a message of another queue is refused."""
    numbers = queue.put_many(["a", "b", "c"])
    first, second, third = queue.get_many(3)
    queue.ack(first)
    queue.nack(second, delay=60, reason="later")
    queue.dead(third, "cannot be parsed")
    assert [message.settled for message in (first, second, third)] == ["ack", "nack", "dead"]
    assert states(connection) == dict(zip(numbers, ["succeeded", "retrying", "failed"], strict=True))
    assert [(letter.id, letter.reason) for letter in queue.dead.list()] == [(third.id, "cannot be parsed")]
    with pytest.raises(IllegalTransition):
        queue.ack(first)
    jobs.queue("others").put(1)
    other = jobs.queue("others").get()
    for verb in (queue.ack, queue.nack, lambda each: queue.dead(each, "no"), lambda each: queue.extend(each, 60)):
        with pytest.raises(ConfigurationError, match="emails"):
            verb(other)
    assert other.settled is None


def test_a_receipt_becomes_a_dead_letter(queue):
    """`queue.dead` takes a receipt as well, of a message that was given anywhere."""
    queue.put_many(["pulled", "held"])
    (pulled,) = queue.pull()
    queue.dead(str(pulled.receipt), "one")
    queue.dead(queue.get().receipt, "two")
    assert [(letter.body, letter.reason) for letter in queue.dead.list()] == [("held", "two"), ("pulled", "one")]


@pytest.mark.parametrize("by", ["message", "queue", "receipt"])
def test_extending_what_this_process_holds(queue, connection, by):
    """Seconds or a timedelta: the lease of that message is set anew, however it is named; the row of the process keeps its own."""
    queue.put(1)
    message = queue.get()
    extend = {
        "message": message.extend, "queue": lambda time: queue.extend(message, time), "receipt": lambda time: queue.extend(str(message.receipt), time),
    }[by]  # fmt: skip
    (consumer,) = queue._application.consumers.values()
    for time, seconds in ((600, 600), (timedelta(hours=2), 7200)):
        extend(time)
        assert seconds - PATIENCE < consumer._held[message.receipt].until - clock.monotonic() <= seconds
    assert connection.execute("SELECT lease_expires_at < now() + interval '1 minute' FROM jobrunner.workers").fetchall() == [(True,)]
    for nonsense in (0, 0.5, -1, 50_000, timedelta(days=1), float("nan"), float("inf"), "sixty", "-60", True, None):
        with pytest.raises(ConfigurationError, match="lease"):
            extend(nonsense)
    message.ack()


def test_extending_what_another_process_holds(dsn, queue, connection):
    """It renews its lease by itself, and its death must be noticed as soon as ever: the receipt is refused, and nothing is held for longer."""
    queue.put(1)
    message = queue.get()
    elsewhere = JobRunner(dsn=dsn)
    with pytest.raises(IllegalTransition, match="by itself"):
        elsewhere.queue("emails").extend(message.receipt, 7200)
    elsewhere.close()
    assert connection.execute("SELECT lease_expires_at < now() + interval '1 minute' FROM jobrunner.workers").fetchall() == [(True,)]
    message.ack()


def test_a_pull_that_is_not_settled_comes_again(queue, connection):
    """The lease of a pull is over when its time is; then its messages go to others, and count against their deaths."""
    number = queue.put(1)
    (pulled,) = queue.pull(lease=1)
    again = queue.get(wait=PATIENCE)
    assert again.id == number
    with pytest.raises(LeaseLost):
        pulled.ack()
    assert connection.execute("SELECT crash_count FROM jobrunner.v_jobs").fetchone() == (1,)
    again.ack()
