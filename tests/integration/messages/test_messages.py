"""Message queues: what is put is given once, held until it is settled, given again when it is not, and dead when that happens too often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import JobRunner
from jobrunner.errors import ConfigurationError, IllegalTransition, InvalidPayload
from jobrunner.settings import MESSAGE_TASK
from tests.support.mail import PATIENCE, states
from tests.support.rows import Scene
from tests.support.waiting import wait_until


def test_what_is_put_is_given_once(queue, connection):
    """A message has its body, headers, id and time; while it is held nobody else gets it; acknowledged it is kept as succeeded."""
    before = connection.execute("SELECT now()").fetchone()[0]
    number = queue.put({"to": "ana", "n": [1, None, "ü"]}, headers={"trace": "1"}, priority=3)
    assert queue.size() == 1
    message = queue.get()
    assert (message.id, message.body, message.headers, message.attempt, message.priority) == (number, {"to": "ana", "n": [1, None, "ü"]}, {"trace": "1"}, 1, 3)
    assert (message.redelivered, message.key, message.expires_at, message.queue) == (False, None, None, "emails")
    assert before <= message.enqueued_at <= datetime.now(UTC) + timedelta(minutes=1)
    assert (queue.get(wait=0), queue.size()) == (None, 0)
    message.ack()
    assert states(connection) == {number: "succeeded"}
    assert message.settled == "ack"


@pytest.mark.parametrize("verb", ["get_many", "pull"])
def test_what_cannot_be_read_is_dead_and_keeps_nobody_from_the_others(queue, connection, verb):
    """A number with more digits than Python reads, written by SQL, is a dead letter; the message beside it is given all the same."""
    args = "=jsonb_build_object('body', repeat('9', 5000)::numeric)"
    unreadable = Scene(connection).job(task=MESSAGE_TASK, queue="emails", args=args, lease=0)
    number = queue.put("fine")
    text = '{"body": ' + "9" * 5000 + "}"
    assert [waiting.body for waiting in queue.peek()] == [text, "fine"]
    assert [message.body for message in getattr(queue, verb)(3)] == ["fine"]
    assert states(connection) == {unreadable: "failed", number: "running"}
    assert [(letter.id, letter.body) for letter in queue.dead.list()] == [(unreadable, text)]
    assert queue.dead.purge() == 1


@pytest.mark.parametrize("body", [None, True, 0, -1.5, "text", "", [], {}, {"body": 1}, [{"a": [None]}]])
def test_any_json_comes_back_as_it_was(queue, body):
    """A body need not be an object."""
    queue.put(body)
    assert queue.get().body == body


@pytest.mark.parametrize("body", [{1, 2}, b"raw", float("nan"), object()])
def test_what_json_cannot_hold_is_refused(queue, body):
    """It is refused at the put, and nothing is there."""
    with pytest.raises(InvalidPayload, match="body"):
        queue.put(body)
    assert queue.size() == 0


def test_headers_that_are_no_mapping_are_refused(queue):
    """By their name, as everything else that cannot be put."""
    with pytest.raises(InvalidPayload, match="headers"):
        queue.put(1, headers=["trace"])


def test_a_block_settles_its_message(queue, connection):
    """A block that ends acknowledges; one that raises gives back, with the error on record; one that settled by itself is left alone."""
    first, second, third = queue.put_many(["a", "b", "c"])
    with queue.get() as message:
        assert message.body == "a"
    with pytest.raises(ZeroDivisionError), queue.get():
        raise ZeroDivisionError("no")
    found = {message.id: message for message in queue.get_many(9)}
    assert set(found) == {second, third}
    assert (found[second].attempt, found[second].redelivered) == (2, True)
    with found[second] as message:
        message.dead("cannot be parsed")
    with found[third]:
        pass
    assert states(connection) == {first: "succeeded", second: "failed", third: "succeeded"}
    said = connection.execute("SELECT outcome, message FROM jobrunner.job_attempts WHERE job_id = %s ORDER BY lease", (second,)).fetchall()
    assert said == [("retried", "builtins.ZeroDivisionError: no"), ("failed", "cannot be parsed")]


def test_an_interrupt_costs_a_message_no_delivery(queue):
    """Ctrl-C amid a message gives it back as if it had not been given."""
    queue.put(1)
    with pytest.raises(KeyboardInterrupt), queue.get():
        raise KeyboardInterrupt
    again = queue.get()
    assert (again.attempt, again.redelivered) == (1, True)


def test_given_back_too_often_it_is_dead(jobs, connection):
    """After `max_deliveries` a message is a dead letter with its last reason; redriven it has all its deliveries again."""
    queue = jobs.queue("emails", max_deliveries=2)
    number = queue.put({"n": 1}, headers={"h": "x"}, key="k")
    for reason in ("first", "second"):
        queue.get().nack(delay=0, reason=reason)
    assert queue.get(wait=0) is None
    (letter,) = queue.dead.list()
    assert (letter.id, letter.body, letter.headers, letter.key, letter.state, letter.reason, letter.deliveries) == (
        number, {"n": 1}, {"h": "x"}, "k", "failed", "second", 2,
    )  # fmt: skip
    assert letter.enqueued_at <= letter.died_at
    assert queue.dead.redrive() == 1
    assert queue.dead.list() == []
    for attempt in (1, 2):
        message = queue.get()
        assert message.attempt == attempt
        message.nack(delay=0)
    assert queue.dead.purge([number]) == 1
    assert states(connection) == {}


def test_dead_letters_come_in_pages_and_only_of_their_queue(jobs):
    """The newest first, each page behind the one before; other queues, successes and cancelled messages are not among them."""
    queue, other = jobs.queue("emails"), jobs.queue("others")
    for where in (queue, other):
        where.put_many(range(5))
        for message in where.get_many(5):
            message.dead("no")
    queue.put("fine")
    queue.get().ack()
    queue.put("cancelled")
    queue.purge()
    first = queue.dead.list(2)
    second = queue.dead.list(9, before=first[-1])
    ids = [letter.id for letter in (*first, *second)]
    assert len(ids) == len(set(ids)) == 5
    assert [letter.died_at for letter in (*first, *second)] == sorted((letter.died_at for letter in (*first, *second)), reverse=True)
    assert queue.dead.redrive(ids[:2]) == 2
    assert other.dead.redrive(ids) == 0
    assert queue.dead.purge() == 3
    assert len(other.dead.list()) == 5
    with pytest.raises(ConfigurationError, match="limit"):
        queue.dead.list(0)


def test_redriving_many_goes_in_steps(jobs, monkeypatch):
    """More dead letters than one statement takes are all redriven, each once."""
    monkeypatch.setattr("jobrunner.deadletters.AT_ONCE", 3)
    queue = jobs.queue("emails")
    queue.put_many(range(10))
    for message in queue.get_many(10):
        message.dead("no")
    assert queue.dead.redrive() == 10
    assert queue.size() == 10


def test_settled_once(queue):
    """A message is settled once; a second word about it is an error that says so."""
    queue.put(1)
    message = queue.get()
    message.ack()
    for verb in (message.ack, message.nack, lambda: message.dead("x"), lambda: message.extend(5)):
        with pytest.raises(IllegalTransition, match="settled"):
            verb()


def test_delay_priority_and_ttl(queue, connection):
    """A delayed message is not given before its time, an urgent one first, an expired one never."""
    delayed, plain, urgent = queue.put("d", delay=600), queue.put("p"), queue.put("u", priority=-5)
    expired = queue.put("x", ttl=60)
    connection.execute("UPDATE jobrunner.jobs SET expires_at = now() WHERE id = %s", (expired,))
    assert [message.id for message in queue.get_many(9)] == [urgent, plain]
    assert [waiting.body for waiting in queue.peek() if waiting.body != "x"] == ["d"]
    connection.execute("UPDATE jobrunner.jobs SET run_at = now() WHERE id = %s", (delayed,))
    assert queue.get(wait=PATIENCE).id == delayed
    wait_until(lambda: "cancelled" in states(connection).values() or queue.get(wait=0) is not None, timeout=PATIENCE, what="the expired one to end")


def test_durations_are_given_in_every_form(queue, connection):
    """Seconds, a timedelta or text mean the same wherever a queue wants to know how long, and what is none is refused by name."""
    queue.put(1, delay="10m", ttl="2h")
    connection.execute("UPDATE jobrunner.jobs SET run_at = now()")
    message = queue.get(lease="1m", wait="30s")
    message.extend("1h30m")
    queue.extend(message, "2h")
    message.nack(delay="2d")
    waits = connection.execute("SELECT run_at - now() BETWEEN interval '47 h' AND interval '48 h' FROM jobrunner.jobs").fetchall()
    assert waits == [(True,)]
    connection.execute("UPDATE jobrunner.jobs SET run_at = now()")
    (pulled,) = queue.pull(lease="1m")
    queue.nack(str(pulled.receipt), delay="250ms")
    assert [message.attempt for message in queue.consume(lease="1m", idle="3s")] == [3]
    queue.put(1)
    message = queue.get()
    for what, call in {
        "lease": lambda: message.extend("soon"), "delay": lambda: message.nack(delay="soon"), "wait": lambda: queue.get(wait="soon"),
        "idle": lambda: next(queue.consume(idle=float("nan"))),
    }.items():  # fmt: skip
        with pytest.raises(ConfigurationError, match=what):
            call()
    with pytest.raises(ConfigurationError, match="years"):
        message.nack(delay=10**400)
    message.ack()


def test_messages_of_one_key_come_one_after_the_other(queue):
    """Of a key one is held at a time, in the order of the ids, whatever happened to the one before; other keys do not wait."""
    ids = queue.put_many(["a", "b", "c"], key="k")
    other = queue.put("o", key="other")
    held = {message.id: message for message in queue.get_many(9)}
    assert set(held) == {ids[0], other}
    assert queue.get(wait=0) is None
    held[ids[0]].nack(delay=0)
    again = queue.get(wait=PATIENCE)
    assert again.id == ids[0]
    again.dead("no use")
    with queue.get(wait=PATIENCE) as message:
        assert message.id == ids[1]
    assert queue.get(wait=PATIENCE).id == ids[2]


def test_publishing_joins_the_callers_transaction(jobs, connection):
    """In a session or on a connection a message exists from the commit on, and not at all after a rollback."""
    queue, engine = jobs.queue("emails"), sa.create_engine(jobs.dsn.sqlalchemy_url)
    with Session(engine) as session:
        queue.put("rolled back", session=session)
        session.rollback()
        queue.put("committed", session=session)
        assert queue.get(wait=0) is None
        session.commit()
    assert queue.get().body == "committed"
    with engine.connect() as own:
        queue.put_many(["x", "y"], connection=own)
        own.rollback()
    assert queue.size() == 0
    engine.dispose()


def test_the_default_session_of_the_app_is_joined(dsn):
    """A JobRunner with a session puts messages into its transaction; `session=None` does not."""
    engine = sa.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://", 1))
    with Session(engine) as session:
        jobs = JobRunner(dsn=dsn, session=session)
        queue = jobs.queue("emails")
        queue.put("with the session")
        queue.put("alone", session=None)
        session.rollback()
        assert [waiting.body for waiting in queue.peek()] == ["alone"]
        jobs.close()
    engine.dispose()


def test_a_loop_acknowledges_what_it_came_past(queue, connection):
    """A loop settles each message as it goes on; one in which it stops comes again, and those that it had not begun lose nothing."""
    first, second, third = queue.put_many(["a", "b", "c"])
    seen = []
    for message in queue.consume(batch=3, idle=0):
        seen.append(message.id)
        if message.id == second:
            break
    assert seen == [first, second]
    found = {message.id: message.attempt for message in queue.get_many(9)}
    assert found == {second: 2, third: 1}
    assert states(connection)[first] == "succeeded"


def test_a_loop_goes_on_after_a_message_that_was_lost(queue):
    """When somebody else has the message by the time that the loop comes for the next one, that is no error of the next one."""
    first, second = queue.put_many(["a", "b"])
    seen = []
    for message in queue.consume(idle=0):
        seen.append(message.id)
        if message.id == first:
            queue.ack(message.receipt)  # behind the loop's back: its own acknowledgement is refused
    assert seen == [first, second]
    assert queue.size() == 0


def test_a_loop_ends_when_nothing_comes(queue):
    """With `idle` a loop ends by itself, having acknowledged everything."""
    queue.put_many(range(5))
    assert sorted(message.body for message in queue.consume(idle=0.05)) == [0, 1, 2, 3, 4]
    assert queue.size() == 0


def test_purge_cancels_what_waits(queue, connection, monkeypatch):
    """Everything that waits is cancelled, in steps, also what is not due; what is held stays."""
    monkeypatch.setattr("jobrunner.messages.PURGED_AT_ONCE", 3)
    held = queue.put("held")
    message = queue.get()
    queue.put_many(range(7))
    queue.put("later", delay=600)
    assert queue.purge() == 8
    assert queue.size() == 0
    message.ack()
    found = states(connection)
    assert found.pop(held) == "succeeded"
    assert set(found.values()) == {"cancelled"}


def test_a_message_put_by_sql_is_one(queue, connection):
    """A plain INSERT is a message: with a body, or with all of its arguments as the body."""
    for args in ('{"body": [1], "headers": {"a": "b"}}', '{"user_id": 42}'):
        connection.execute("INSERT INTO jobrunner.jobs (task, queue, args) VALUES ('jobrunner.message', 'emails', %s)", (args,))
    found = [(message.body, message.headers) for message in queue.get_many(9)]
    assert found == [([1], {"a": "b"}), ({"user_id": 42}, {})]


def test_a_task_cannot_have_the_name_of_messages(jobs):
    """Workers run what is registered: messages never are."""
    with pytest.raises(ConfigurationError, match="messages"):
        jobs.task(name="jobrunner.message")(lambda: None)


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.get(lease=0.5), lambda queue: queue.get(lease=90_000), lambda queue: queue.get(wait=-1),
        lambda queue: queue.get_many(0), lambda queue: queue.get_many(1001), lambda queue: queue.pull(lease=None),
        lambda queue: queue.put(1, key=""), lambda queue: queue.put(1, priority=40_000), lambda queue: queue.put(1, ttl=0),
        lambda queue: queue.put(1, delay=-1), lambda queue: queue._application.queue(""), lambda queue: queue._application.queue("a", max_deliveries=0),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(queue, call):
    """A value out of range is an error that names it, and nothing happens."""
    with pytest.raises(ConfigurationError):
        call(queue)
