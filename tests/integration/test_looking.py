"""The queries that ask for finished jobs: by primary keys however large the tables, in bounded memory, in one snapshot."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from jobrunner.looking import _ATTEMPTS, _LIVE, _ROWS, ROWS_AT_ONCE, Looker
from jobrunner.settings import parse_dsn
from tests.support.calls import fill, gather
from tests.support.endings import finish, record_attempt
from tests.support.explain import Plan
from tests.support.rows import Scene, array

SIZE = 100_000
BATCHES = (1, 100, 1000)
BUFFERS = 5  # for each id in each table or partition: the levels of an index and the row


@pytest.fixture
def own(fresh_dsn):
    """A database of one's own: statistics and dead rows of other tests would change the plans."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Scene(connection)


def look(looker, ids, last=()) -> dict[int, Any]:
    """What `look` gives, by id."""
    return dict(looker.look(ids, last))


def plan_of(own, query, ids, *, generic):
    """The plan of a query, with the array known to the planner or, as in a prepared statement, not."""
    own.execute(f"SET plan_cache_mode = {'force_generic_plan' if generic else 'force_custom_plan'}")
    types, text = "(bigint[])", query.replace("%(ids)s", "$1").replace("%%", "%")
    own.execute(f"PREPARE looking {types} AS {text}")
    row = own.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE looking ('{array(ids)}')").fetchone()
    own.execute("DEALLOCATE looking")
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])


@pytest.mark.parametrize("generic", [True, False], ids=["prepared", "plain"])
@pytest.mark.parametrize("statistics", ["analysed", "stale", "never"])
def test_plans_name_the_primary_keys_and_read_what_was_asked_for(own, statistics, generic):
    """Whatever the statistics say and whether or not the query is prepared, it reads the jobs asked for and no others."""
    filled = fill(own, SIZE, statistics)
    own.execute(
        "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, outcome, traceback, finished_at)"
        " SELECT -g, 1, lease, 'x', 'x', 'failed', repeat('x', 100), now() + (g %% 3 - 1) * interval '1 day'"
        " FROM generate_series(1, %s) AS g, generate_series(1, 3) AS lease",
        (SIZE,),
    )
    if statistics == "analysed":
        gather(own)
    partitions = own.one("SELECT count(*) FROM pg_inherits WHERE inhparent = 'jobrunner.job_history'::regclass")
    middle = filled.first_queued + SIZE // 2
    for batch in BATCHES:
        live, finished = list(range(middle, middle + batch)), list(range(-middle, -middle + batch))
        for query, ids, tables in (
            (_LIVE, live, {"jobs": batch}),
            (_LIVE, finished, {"jobs": 0}),
            (_ROWS, live, {"jobs": batch, "job_history": 0}),
            (_ROWS, finished, {"jobs": 0, "job_history": batch}),
            (_ATTEMPTS, finished, {"job_attempts": batch * 3}),
        ):
            plan = plan_of(own, query, ids, generic=generic)
            for table, most in tables.items():
                assert plan.rows_read(table) <= most, plan.outline()
            sequential = [scan for scan in plan.nodes() if scan["Node Type"] == "Seq Scan" and scan["Actual Rows"]]
            assert not sequential, plan.outline()
            assert all("_pkey" in index for index in plan.indexes()), plan.outline()
            assert plan.buffers <= BUFFERS * batch * (partitions + 1), f"{plan.buffers} for {batch}: {plan.outline()}"


def test_only_what_is_no_longer_live_is_read(own, fresh_dsn):
    """Live jobs are left out but for those whose time is up; finished ones come with their row, missing ones with none."""
    live, asked, ended, failed = [own.job() for _ in range(4)]
    finish(own.connection, ended, result={"a": [1]})
    finish(own.connection, failed, "failed", error_type="ValueError", error="no")
    record_attempt(own.connection, failed, 1, "failed", "here", "exception")
    looker = Looker(parse_dsn(fresh_dsn, "test"))
    found = look(looker, [live, asked, ended, failed, 2**40], {asked})
    looker.close()
    assert set(found) == {asked, ended, failed, 2**40}
    assert found[2**40] is None
    assert (found[asked].state, found[asked].result) == ("queued", None)
    assert (found[ended].state, found[ended].result, found[ended].traceback) == ("succeeded", '{"a": [1]}', None)
    assert found[failed][5:] == ("no", "here", "exception", None)


def test_results_are_read_a_hundred_at_a_time(own, fresh_dsn, monkeypatch):
    """However many jobs end at once, the results of a hundred are in memory: the next are read when these were handed out."""
    ids = [own.job() for _ in range(2 * ROWS_AT_ONCE + 1)]
    for number, job_id in enumerate(ids):
        finish(own.connection, job_id, result=number)
    looker, sizes = Looker(parse_dsn(fresh_dsn, "test")), []
    ask = looker._ask

    def counted(query, parameters):
        rows = ask(query, parameters)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(looker, "_ask", counted)
    results = looker.look(ids, set())
    first = next(results)
    assert sizes == [0, ROWS_AT_ONCE]
    assert [row.result for _, row in [first, *results] if row] == [str(number) for number in range(len(ids))]
    assert sizes == [0, ROWS_AT_ONCE, ROWS_AT_ONCE, 1]
    looker.close()


def test_a_direct_connection_plans_once(own, fresh_dsn):
    """On a direct connection each query is planned once, not once a look: history has a partition for every day."""
    job_id = own.job()
    finish(own.connection, job_id)
    looker = Looker(parse_dsn(fresh_dsn, "test"))
    for _ in range(3):
        assert look(looker, [job_id])[job_id].state == "succeeded"
    assert looker._connection is not None
    prepared = looker._connection.execute("SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement ~ 'jobrunner:'")
    assert prepared.fetchall() == [(3, 0), (3, 0)]
    looker.close()
    assert not looker.connected
