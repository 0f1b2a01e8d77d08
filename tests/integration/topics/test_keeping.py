"""Old events go by the day; what a group has yet to get stays, however old it is."""

from __future__ import annotations

from datetime import date, timedelta

import psycopg
import pytest

from jobrunner import ConfigurationError
from jobrunner.maintenance.events import EventPruner, keep_events
from jobrunner.store import Store
from tests.support.topics import Shop

OLD = date(2024, 2, 29)


@pytest.fixture
def connection(fresh_dsn):
    """A database of one's own: partitions are made and dropped."""
    with psycopg.connect(fresh_dsn, autocommit=True) as opened:
        opened.execute(
            f"CREATE TABLE jobrunner.events_{OLD:%Y%m%d} PARTITION OF jobrunner.events FOR VALUES FROM ('{OLD} 00:00+00') TO ('{OLD + timedelta(1)} 00:00+00')"
        )
        yield opened


@pytest.fixture
def shop(fresh_dsn):
    made = Shop(fresh_dsn)
    yield made
    made.jobs.close()


def published(connection, position, day, name="order.paid"):
    """An event of that day, at noon."""
    connection.execute(
        "INSERT INTO jobrunner.events (position, topic, name, payload, published_at) VALUES (%s, 'orders', %s, '1', %s::date + interval '12 h')",
        (position, name, day),
    )


def days(connection):
    found = connection.execute("SELECT relname FROM pg_class WHERE relname ~ '^events_2024' AND relispartition ORDER BY 1").fetchall()
    return [name for (name,) in found]


def test_old_days_go(connection):
    """Without a group that wants them, days older than they are kept are dropped, younger ones stay."""
    published(connection, 1, OLD)
    prune = EventPruner(timedelta(days=7))
    assert prune(Store(connection)).days == 1
    assert prune(Store(connection)) == (0,)
    assert days(connection) == []
    assert connection.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'jobrunner.events'::regclass").fetchone()[0] > 7


def test_what_a_group_has_yet_to_get_stays(connection, shop):
    """An event that is not delivered keeps its day; one that its group does not want, or has had, does not."""
    shop.log("search", "order.paid")
    shop.declare()
    published(connection, 1, OLD, "order.lost")
    published(connection, 2, OLD)
    prune = EventPruner(timedelta(days=7))
    assert prune(Store(connection)).days == 0
    connection.execute("UPDATE jobrunner.cursors SET position = 2")
    assert prune(Store(connection)).days == 1
    assert days(connection) == []


def test_a_day_in_use_is_left(connection, fresh_dsn):
    """A reader is not disturbed, and the pruner does not wait for it."""
    published(connection, 1, OLD)
    with psycopg.connect(fresh_dsn) as reader:
        reader.execute("SELECT count(*) FROM jobrunner.events")
        assert EventPruner()(Store(connection)).days == 0
        reader.rollback()
    assert EventPruner()(Store(connection)).days == 1


def test_how_long(monkeypatch):
    """A week, or what the environment says; what is no duration of a day or more is refused with the name of the variable."""
    assert keep_events() == timedelta(days=7)
    monkeypatch.setenv("JOBRUNNER_KEEP_EVENTS", "30d")
    assert keep_events() == timedelta(days=30)
    monkeypatch.setenv("JOBRUNNER_KEEP_EVENTS", "1h")
    with pytest.raises(ConfigurationError, match="JOBRUNNER_KEEP_EVENTS"):
        keep_events()
