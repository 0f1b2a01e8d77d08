"""A group that reads the log is set to another place, whatever it is doing."""

from __future__ import annotations

from tests.support.topics import EFFECTS, cursor, positions, publish

NOW = {"max_attempts": 2, "backoff": "constant", "backoff_base": 0}


def test_rewinding(shop, connection):
    """Set back to a position, to an instant or to the earliest, a group gets exactly what was published from there on once more."""
    shop.log("search", "order.paid")
    shop.declare()
    first = publish(connection, 1)
    second = publish(connection, 2)
    at = connection.execute("SELECT clock_timestamp()").fetchone()[0]
    publish(connection, 3)
    publish(connection, "other", "order.lost")
    shop.drain_until("search", 1, 2, 3)
    end = cursor(connection, "search")
    for to, expected in ((second, (2, 3)), (at, (3,)), ("earliest", (1, 2, 3)), (0, (1, 2, 3)), (first, (1, 2, 3)), (end + 9, ())):
        shop.got.clear()
        rewound = shop.topic.rewind("search", to)
        assert rewound.was >= end
        shop.drain_until("search", *expected)
    shop.topic.rewind("search", "latest")
    publish(connection, 4)
    shop.got.clear()
    shop.drain_until("search", 4)


def test_rewinding_while_a_batch_is_handed_over(shop, connection, effects):
    """It waits for nobody: what the handler was at is rolled back, and the group begins where it was set."""
    shop.log("ledger", transactional=True)
    shop.declare()
    for number in range(3):
        publish(connection, number)
    shop.drain_to_the_end("ledger")
    publish(connection, 3)
    shop.got.clear()
    once = iter([lambda: shop.topic.rewind("ledger", "earliest")])

    def rewind_once():
        for rewind in once:
            rewind()

    shop.meanwhile = rewind_once
    shop.drain_to_the_end("ledger")
    assert [payloads for _, payloads in shop.got] == [[3], [0, 1, 2, 3]]
    wanted = positions(connection)
    assert connection.execute(EFFECTS).fetchall() == [(position,) for position in sorted(wanted[:3] + wanted)]


def test_rewinding_a_group_whose_job_waits_for_its_next_attempt(shop, connection):
    """The pause after a failure is over with that: what failed is not what comes next."""
    shop.log("search", **NOW | {"backoff_base": 3600})
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_until_called(1)
    shop.topic.publish("order.paid", 2)
    second = positions(connection)[1]
    shop.got.clear()
    shop.topic.rewind("search", second)
    shop.drain_until("search", 2)
