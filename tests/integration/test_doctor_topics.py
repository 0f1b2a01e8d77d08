"""The doctor's look at groups of topics: stopped, far behind and why, declared by nobody; and the commands that it names work."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from jobrunner.doctor import Limits
from tests.support.doctoring import examined
from tests.support.topics import Shop, publish

AT_ONCE = Limits(group_note=timedelta(0), group_bad=timedelta(hours=1))


@pytest.fixture
def shop(fresh_dsn):
    made = Shop(fresh_dsn)
    yield made
    made.jobs.close()


@pytest.fixture
def connection(fresh_dsn):
    with psycopg.connect(fresh_dsn, autocommit=True) as opened:
        yield opened


def test_nothing_to_say(shop, fresh_dsn, connection):
    """Without groups, and with one that is up to date, the check is content."""
    assert examined(fresh_dsn).one("topics").data == {"groups": 0}
    shop.log("search")
    shop.queue("billing")
    shop.declare()
    publish(connection, 1)
    assert (examined(fresh_dsn).one("topics").state, examined(fresh_dsn).one("topics").data) == ("ok", {"groups": 2})


def test_a_group_that_is_behind(shop, fresh_dsn, connection):
    """It is named with its lag; bad once that is old."""
    shop.log("search", "order.#")
    shop.declare()
    for number in range(3):
        publish(connection, number)
    publish(connection, 0, "stock")
    found = examined(fresh_dsn, AT_ONCE).one("group_behind")
    assert (found.state, found.data["group"], found.data["behind"]) == ("note", "search", 3)
    found = examined(fresh_dsn, Limits(group_note=timedelta(0), group_bad=timedelta(0))).one("group_behind")
    assert found.state == "bad"


def test_who_holds_a_group_up(shop, fresh_dsn, connection):
    """When it waits for a transaction, the session that has it open is named, and ended by the command."""
    shop.log("search")
    shop.declare()
    with psycopg.connect(fresh_dsn) as forgotten:
        publish(forgotten, 1)
        publish(connection, 2)
        shop.drain()
        found = examined(fresh_dsn, AT_ONCE).one("group_behind")
        if f"session {forgotten.info.backend_pid} " not in found.text:  # an older one of another test on this server is as good a reason
            assert "holds a transaction open" in found.text
        else:
            assert found.fix == f"select pg_terminate_backend({forgotten.info.backend_pid});"
            connection.execute(found.fix)
            with pytest.raises(psycopg.OperationalError):
                forgotten.execute("SELECT 1")


def test_a_stopped_group(shop, fresh_dsn):
    """It is bad, with the job that failed and the command that lets it go on."""
    shop.log("search", max_attempts=1)
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_until_stopped("search")
    found = examined(fresh_dsn).one("group_stopped")
    assert (found.state, found.fix.splitlines()[1]) == ("bad", "jobrunner topics resume orders --group search")


def test_a_group_that_nobody_declares(shop, fresh_dsn):
    """It still gets events: a note, with the command that removes it."""
    shop.queue("billing")
    shop.declare()
    shop.jobs.subscriptions.clear()
    shop.declare()
    found = examined(fresh_dsn).one("group_undeclared")
    assert (found.state, found.fix) == ("note", "jobrunner topics unsubscribe orders --group billing")
