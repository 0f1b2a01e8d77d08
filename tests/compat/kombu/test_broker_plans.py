"""Plans of the broker's hot statements: which index they use, and that what they read does not grow with what else there is."""

from __future__ import annotations

import psycopg
import pytest

from jobrunner import statements
from tests.support.brokercalls import BROKER_CALLS
from tests.support.explain import explain, explain_prepared

BOTH_WAYS = pytest.mark.parametrize("look", [explain, explain_prepared], ids=["plain", "prepared"])
FROM_THE_START = {"priority": None, "floor_available_at": "1970-01-01 00:00+00", "floor_id": 0}
BATCH = 10
MESSAGES = (
    "INSERT INTO jobrunner.broker_messages (queue, priority, available_at, message)"
    " SELECT %s, %s, now() + %s::interval, '{}' FROM generate_series(1, %s)"
)


@pytest.fixture
def own(fresh_dsn):
    """A database with a consumer, whose tables nobody cleans."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE jobrunner.broker_messages SET (autovacuum_enabled = false)")
        connection.execute("INSERT INTO jobrunner.broker_queues (name) SELECT 'queue ' || g FROM generate_series(1, 200) AS g")
        yield connection


def join(connection):
    """A consumer's id."""
    return connection.execute(statements.load("broker_join"), BROKER_CALLS["broker_join"]).fetchone()[0]


@BOTH_WAYS
@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never"])
@pytest.mark.parametrize("name", ["broker_claim", "broker_take"])
def test_giving_reads_what_it_gives(own, look, analysed, name):
    """Of a hundred thousand messages in several queues, a hundred thousand for later and more urgent ones, the batch is read and no more."""
    for queue, priority, later, count in [("celery", 0, "0", 50_000), ("other", 0, "0", 50_000), ("celery", 9, "30 days", 100_000), ("celery", 5, "0", 3)]:
        own.execute(MESSAGES, (queue, priority, later, count))
    if analysed:
        own.execute("VACUUM ANALYZE jobrunner.broker_messages")
    parameters = {"queue": "celery", "take": BATCH, **FROM_THE_START}
    plan = look(own, name, {**parameters, "consumer_id": join(own)} if name == "broker_claim" else parameters)
    assert plan.indexes() >= {"broker_messages_claim", "broker_messages_pkey"}
    assert not plan.sequential("broker_messages")
    assert plan.rows_read("broker_messages") <= 2 * BATCH + 4  # once to lock and once to change; one for each priority, and the end
    assert plan.buffers <= 60 * BATCH


@BOTH_WAYS
def test_the_floor_keeps_a_claim_cheap_under_a_pinned_snapshot(own, fresh_dsn, look):
    """While an old snapshot keeps dead rows alive, a claim behind the floor does not walk over them; one from the start does."""
    consumer = join(own)
    own.execute(MESSAGES, ("celery", 0, "0", 20_000))
    with psycopg.connect(fresh_dsn) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM jobrunner.broker_messages")
        own.execute("DELETE FROM jobrunner.broker_messages")
        own.execute(MESSAGES, ("celery", 0, "0", 1))
        [last] = own.execute(statements.load("broker_take"), {"queue": "celery", "take": 1, **FROM_THE_START}).fetchall()
        own.execute(MESSAGES, ("celery", 0, "0", 100))
        call = {"consumer_id": consumer, "queue": "celery", "take": BATCH}
        floor = {"priority": last[2], "floor_available_at": last[3], "floor_id": last[0]}
        behind = look(own, "broker_claim", {**call, **floor})
        start = look(own, "broker_claim", {**call, **FROM_THE_START})
        assert behind.rows_read("broker_messages") == 2 * BATCH
        assert start.index_buffers("broker_messages_claim") >= 20 * behind.index_buffers("broker_messages_claim")


@BOTH_WAYS
def test_an_acknowledgement_is_one_look(own, look):
    """By the message's own id, however many its consumer holds."""
    consumer = join(own)
    own.execute(MESSAGES, ("celery", 0, "0", 5000))
    given = own.execute(statements.load("broker_claim"), {"consumer_id": consumer, "queue": "celery", "take": 4000, **FROM_THE_START}).fetchall()
    for name in ("broker_ack", "broker_release"):
        plan = look(own, name, {"ids": [given[7][0]], "leases": [given[7][1]]})
        assert plan.indexes() == {"broker_messages_pkey"}
        assert plan.rows_read("broker_messages") == 1


@BOTH_WAYS
def test_the_rounds_of_a_keeper_read_what_they_change(own, look):
    """With fifty thousand messages in two hundred queues and none too late, rescuing and sweeping look once for each queue and consumer."""
    for number in range(1, 201):
        own.execute(MESSAGES, (f"queue {number}", 0, "0", 250))
    consumers = [join(own) for _ in range(5)]
    for consumer in consumers:
        own.execute(statements.load("broker_claim"), {"consumer_id": consumer, "queue": "queue 1", "take": 20, **FROM_THE_START})
    own.execute("VACUUM ANALYZE")
    for name in ("broker_rescue", "broker_sweep_messages", "broker_sweep_queues", "broker_sweep_orphans", "broker_sweep_results"):
        plan = look(own, name, BROKER_CALLS[name])
        assert not plan.sequential("broker_messages"), f"{name}: {plan.outline()}"
        assert plan.rows_read("broker_messages") <= 210, f"{name}: {plan.outline()}"
