"""Through PgBouncer in transaction mode: nothing is heard, everything is found."""

from __future__ import annotations

import contextlib

import pytest
from kombu import Connection, Consumer, Producer, Queue

from tests.support import poolers
from tests.support.celeries import url_of
from tests.support.waiting import wait_until

PATIENCE = 30  # seconds


@pytest.mark.needs("pgbouncer")
def test_the_same_through_a_pooler(fresh_dsn, tmp_path):
    """Messages are published, given, acknowledged and given back; leases are renewed; a consumer knows that it cannot hear."""
    with poolers.pgbouncer(fresh_dsn, tmp_path) as address, Connection(url_of(address), transport_options={"lease": 1.0}) as connection:
        got = []
        with Consumer(connection, [Queue("orders")], callbacks=[lambda body, message: got.append((body, message))], prefetch_count=2):
            for number in range(20):
                Producer(connection).publish(number, routing_key="orders")

            def work():
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)
                for _, message in got:
                    if not message.acknowledged:
                        message.ack()
                return len(got) >= 20

            wait_until(work, timeout=PATIENCE, what="all messages")
            assert not connection.transport.surroundings.keeper.hears
        assert sorted(body for body, _ in got) == list(range(20))
