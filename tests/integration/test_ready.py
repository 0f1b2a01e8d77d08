"""Connections that stand ready in front of the pool: used again, never more than asked for, never a bad one, none across a fork."""

from __future__ import annotations

import os

import pytest

from jobrunner.database import Database
from jobrunner.settings import parse_dsn
from tests.support.waiting import wait_until

KEPT = 2
PID = "SELECT pg_backend_pid()"


@pytest.fixture
def database(dsn):
    database = Database(parse_dsn(dsn, "test"), pool_size=KEPT)
    yield database
    database.close()


def pid_of(kept) -> int:
    return kept.connection.execute(PID).fetchone()[0]  # type: ignore[no-any-return]


def test_the_last_one_used_is_used_again(database):
    """One thread keeps one connection, for statements of its own and for those of the verbs."""
    kept = database.ready.take()
    pid = pid_of(kept)
    database.ready.give(kept)
    with database.store() as store:
        assert store.connection.execute(PID).fetchone() == (pid,)
    assert database.engine.pool.checkedout() == 1


def test_no_more_are_kept_than_asked_for(database):
    """What was opened under load goes back to the pool, which has a bound of its own."""
    taken = [database.ready.take() for _ in range(2 * KEPT)]
    assert len({pid_of(kept) for kept in taken}) == 2 * KEPT
    for kept in taken:
        database.ready.give(kept)
    assert database.engine.pool.checkedout() == KEPT


def test_one_amid_a_transaction_is_not_given_to_the_next(database):
    """Whatever broke a statement off, the next caller gets a connection in which nothing is open."""
    kept = database.ready.take()
    kept.connection.execute("BEGIN")
    database.ready.give(kept)
    assert kept.connection.closed
    with database.store() as store:
        assert store.connection.execute("SELECT now() = statement_timestamp()").fetchone() == (True,)


def test_one_that_the_server_ended_is_replaced(database, connection):
    """A restart between two statements costs neither an error nor a place in the pool."""
    ended: set[int] = set()
    for _ in range(3 * KEPT):
        kept = database.ready.take()
        pid = pid_of(kept)
        assert pid not in ended
        ended.add(pid)
        database.ready.give(kept)
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_one_in_use_at_the_close_is_closed_when_it_comes_back(database, connection):
    """After `close` nothing is left open, as soon as the last statement is done."""
    idle, used = database.ready.take(), database.ready.take()
    pids = [pid_of(idle), pid_of(used)]
    database.ready.give(idle)
    database.close()
    assert idle.connection.closed
    database.ready.give(used)
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ANY (%s)"
    wait_until(lambda: connection.execute(gone, (pids,)).fetchone()[0], timeout=10, what="both sessions have ended")


def test_a_forked_child_leaves_the_parents_connections_alone(database):
    """Parent and child go on with a connection each."""
    kept = database.ready.take()
    pid = pid_of(kept)
    database.ready.give(kept)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  another process
        try:
            database.forget()
            with database.store() as store:
                os.write(write, str(store.connection.execute(PID).fetchone()[0]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        childs = int(answer.read())
    os.waitpid(child, 0)
    with database.store() as store:
        assert store.connection.execute(PID).fetchone() == (pid,)
    assert childs != pid
