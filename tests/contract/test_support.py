"""The fixtures keep their word: whatever else is tested here stands on them."""

from __future__ import annotations

import psycopg
import pytest

from jobrunner import migrate
from tests.support.postgres import SharedDatabase, with_database
from tests.support.waiting import wait_until


@pytest.mark.matrix
def test_dsn_is_migrated_and_empty(dsn, connection):
    """The shared database has the schema this program needs, and no job."""
    assert migrate.version(dsn).up_to_date
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)


@pytest.mark.parametrize("turn", [1, 2])
def test_nothing_stays_from_one_test_to_the_next(connection, turn):
    """Rows and tables of one test are gone in the next."""
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)
    connection.execute("CREATE TABLE public.mine (id int)")
    connection.execute("INSERT INTO jobrunner.jobs (task) VALUES ('left')")


def test_a_transaction_left_open_is_named_and_ended(fresh_dsn):
    """A test that leaves a lock behind fails by itself and does not hang the next one."""
    shared = SharedDatabase(fresh_dsn)
    with psycopg.connect(fresh_dsn, application_name="forgetful") as left:
        left.execute("LOCK TABLE jobrunner.jobs")
        with pytest.raises(AssertionError, match="forgetful"):
            shared.empty()
        shared.empty()
        left.close()


def test_the_last_statement_of_a_client_that_is_gone(fresh_dsn):
    """The server ends it all the same: what it writes is gone in the next test too."""
    shared = SharedDatabase(fresh_dsn)
    gone = psycopg.connect(fresh_dsn)
    gone.pgconn.send_query(
        b"INSERT INTO jobrunner.jobs (task) SELECT 'late' FROM (SELECT count(*) FROM generate_series(1, 3000000)) AS long"
    )
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%late%' AND pid <> pg_backend_pid()"
        wait_until(lambda: connection.execute(others).fetchone() is not None, timeout=60, what="the statement to run")
        gone.close()
        shared.empty()
        wait_until(lambda: connection.execute(others).fetchone() is None, timeout=60, what="its session to end")
        assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)


def test_fresh_and_empty_databases(fresh_dsn, empty_dsn):
    """`fresh_dsn` has the schema, `empty_dsn` has not."""
    assert migrate.version(fresh_dsn).up_to_date
    assert migrate.version(empty_dsn).current is None


@pytest.mark.parametrize(
    ("dsn_text", "expected"),
    [
        ("postgresql://u:p@h:1/a", "postgresql://u:p@h:1/b"),
        ("postgresql:///a?host=%2Ftmp&port=5", "postgresql:///b?host=%2Ftmp&port=5"),
    ],
)
def test_with_database(dsn_text, expected):
    """Only the database changes."""
    assert with_database(dsn_text, "b") == expected


def test_durable_server_keeps_postgresql_defaults(durable_server):
    """A crash test would prove nothing with fsync off."""
    with psycopg.connect(durable_server.dsn("postgres")) as connection:
        found = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit", "full_page_writes")]
    assert found == [("on",), ("on",), ("on",)]


def test_wait_until_gives_the_answer_or_says_what_was_awaited():
    """The answer is returned; a deadline names what did not happen and the last answer."""
    answers = iter([0, 0, 7])
    assert wait_until(lambda: next(answers), timeout=5, what="seven") == 7
    with pytest.raises(AssertionError, match=r"still not: rain \(last answer: \[\]\)"):
        wait_until(list, timeout=0.02, what="rain")
