"""Reading the log of one job: on from any line, the newest lines, by attempt and level; and what it costs with many days of logs."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy.dialects import postgresql

from jobrunner import inspection
from jobrunner.database import Database
from jobrunner.errors import ConfigurationError, InvalidCursor, JobNotFound
from jobrunner.inspection.logs import LineKey, Wanted, statement
from jobrunner.settings import parse_dsn
from tests.support.explain import Plan
from tests.support.viewrows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

DAYS = 60  # partitions of old logs
LINES_A_DAY = 2_000
NOISY, NOISY_LINES = 1_000, 100_000  # a job, and what it logged within two days
LIMIT = 201
BIGGEST = 2**63 - 1


@pytest.fixture
def database(dsn) -> Iterator[Database]:
    """A pool on the test's database."""
    opened = Database(parse_dsn(dsn, "test"))
    yield opened
    opened.close()


@pytest.fixture
def rows(connection) -> Rows:
    """An empty database to put rows in."""
    return Rows(connection)


def write(connection, job_id, lease, numbers, **columns) -> None:
    """Lines of one attempt, a second apart, up to now."""
    values = {"attempt": lease, "level": 20, "logger": "shop", **columns}
    for number in numbers:
        connection.execute(
            "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, level, logger, message, logged_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp())",
            (job_id, lease, number, values["attempt"], values["level"], values["logger"], values.get("message", f"{lease}/{number}")),
        )


def messages(page) -> list[str]:
    """What was logged, in the order of the answer."""
    return [row.message for row in page.items]


def test_a_log_is_read_in_the_order_of_attempts_and_lines(connection, database, rows) -> None:
    """Attempt after attempt, line after line, whatever the instants say; only the job's own."""
    job_id, other = rows.running(rows.worker("w")), rows.job()
    write(connection, job_id, 2, (1, 2, 10))
    write(connection, job_id, 1, (2, 1))
    write(connection, other, 1, (1,))
    page = inspection.job_logs(database, job_id)
    assert messages(page) == ["1/1", "1/2", "2/1", "2/2", "2/10"]
    assert (page.next, page.more, page.left_out, page.state, page.finished) == ("2-10", False, False, "running", False)
    first = page.items[0]
    assert (first.lease, first.attempt, first.line, first.level, first.logger, first.key) == (1, 1, 1, "INFO", "shop", "1-1")


def test_pages_hold_every_line_once(connection, database, rows) -> None:
    """Reading on with `next` gives each line once, in order, whatever the size of a page; the end is told."""
    job_id = rows.running(rows.worker("w"))
    write(connection, job_id, 1, range(1, 8))
    write(connection, job_id, 2, range(1, 4))
    everything = messages(inspection.job_logs(database, job_id))
    for limit in (1, 2, 3, 5, 10, 11):
        found, after, more = [], None, True
        while more:
            page = inspection.job_logs(database, job_id, after=after, limit=limit)
            assert 0 < len(page.items) <= limit
            found += messages(page)
            after, more = page.next, page.more
        assert found == everything, limit


def test_a_reader_who_is_at_the_end_gets_what_comes_next(connection, database, rows) -> None:
    """The cursor of an answer without lines leads on from where it was, and at the beginning to the first line."""
    job_id = rows.running(rows.worker("w"))
    nothing = inspection.job_logs(database, job_id)
    assert (nothing.items, nothing.next, nothing.more) == ((), None, False)
    write(connection, job_id, 1, (1,))
    after = inspection.job_logs(database, job_id, after=nothing.next).next
    empty = inspection.job_logs(database, job_id, after=after)
    assert (empty.items, empty.next) == ((), "1-1")
    write(connection, job_id, 1, (2,))
    write(connection, job_id, 2, (1,))
    assert messages(inspection.job_logs(database, job_id, after=empty.next)) == ["1/2", "2/1"]


def test_the_newest_lines(connection, database, rows) -> None:
    """`tail` gives the last lines in order, says whether there are earlier ones, and leads on to later ones."""
    job_id = rows.running(rows.worker("w"))
    write(connection, job_id, 1, range(1, 4))
    write(connection, job_id, 2, range(1, 3))
    page = inspection.job_logs(database, job_id, tail=3)
    assert (messages(page), page.left_out, page.more, page.next) == (["1/3", "2/1", "2/2"], True, False, "2-2")
    page = inspection.job_logs(database, job_id, tail=5)
    assert (len(page.items), page.left_out) == (5, False)
    assert messages(inspection.job_logs(database, job_id, tail=1, attempt=1)) == ["1/3"]


def test_attempt_and_level_choose_lines(connection, database, rows) -> None:
    """An attempt that was given back shares its number with the next; a level takes those above with it."""
    job_id = rows.running(rows.worker("w"))
    for lease, attempt in ((1, 1), (2, 1), (3, 2)):
        for line, level in enumerate((5, 10, 20, 25, 30, 40, 50), 1):
            write(connection, job_id, lease, (line,), attempt=attempt, level=level)
    assert {row.lease for row in inspection.job_logs(database, job_id, attempt=1).items} == {1, 2}
    assert inspection.job_logs(database, job_id, attempt=3).items == ()
    words = [row.level for row in inspection.job_logs(database, job_id, attempt=2).items]
    assert words == ["DEBUG", "DEBUG", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL"]
    for number, word_asked in enumerate(inspection.LEVELS):
        found = [row.level for row in inspection.job_logs(database, job_id, attempt=2, level=word_asked.lower()).items]
        assert found == [word for word in words if word in list(inspection.LEVELS)[number:]]
    assert messages(inspection.job_logs(database, job_id, level="ERROR", after="2-6")) == ["2/7", "3/6", "3/7"]


def test_words_are_those_of_the_view(connection, database, rows) -> None:
    """Every level has the word that v_logs gives it."""
    job_id = rows.running(rows.worker("w"))
    for level in range(-1, 101):
        write(connection, job_id, 1, (level + 2,), level=level)
    in_view = connection.execute("SELECT level FROM jobrunner.v_logs WHERE job_id = %s ORDER BY line", (job_id,)).fetchall()
    assert [(row.level,) for row in inspection.job_logs(database, job_id).items] == in_view


def test_a_line_that_was_written_twice_is_one(connection, database, rows) -> None:
    """A worker whose connection broke writes a batch again: the lines are there twice, and shown once."""
    job_id = rows.running(rows.worker("w"))
    for _ in range(2):
        write(connection, job_id, 1, (1, 2, 3))
    assert connection.execute("SELECT count(*) FROM jobrunner.job_logs").fetchone() == (6,)
    assert messages(inspection.job_logs(database, job_id)) == ["1/1", "1/2", "1/3"]
    assert messages(inspection.job_logs(database, job_id, limit=2)) == ["1/1", "1/2"]
    assert messages(inspection.job_logs(database, job_id, tail=2)) == ["1/2", "1/3"]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "quarantined"])
def test_the_log_of_a_finished_job_is_complete(connection, database, rows, state) -> None:
    """A finished job keeps its log, and says that no more will come; what was read of it by `get_job` gives the same."""
    job_id = rows.finished(state, created_at=datetime.now(UTC) - timedelta(minutes=1), finished_at="=clock_timestamp()")
    write(connection, job_id, 1, (1, 2))
    page = inspection.job_logs(database, job_id)
    assert (messages(page), page.state, page.finished) == (["1/1", "1/2"], state, True)
    again = inspection.job_logs(database, inspection.get_job(database, job_id))
    assert (again.items, again.state, again.finished, again.next) == (page.items, page.state, page.finished, page.next)


@pytest.mark.parametrize("created_at", ["infinity", "-infinity", "9998-01-01", "2001-01-01", "now"])
def test_no_creation_time_hides_a_log(connection, database, rows, created_at) -> None:
    """Whatever somebody wrote as creation time, the lines of a running job are found."""
    job_id = rows.running(rows.worker("w"), created_at=created_at)
    write(connection, job_id, 1, (1,))
    assert messages(inspection.job_logs(database, job_id)) == ["1/1"]
    assert messages(inspection.job_logs(database, job_id, tail=1)) == ["1/1"]


@pytest.mark.parametrize("job_id", [0, 1, -1, BIGGEST, BIGGEST + 1])
def test_an_unknown_job_is_an_error(database, job_id) -> None:
    """A job that does not exist has no log, not an empty one."""
    with pytest.raises(JobNotFound):
        inspection.job_logs(database, job_id)


@pytest.mark.parametrize("after", ["", "x", "1", "1-", "-1", "1-2-3", "-1-2", "1--2", " 1-2", "1-2\n", "٣-٤", f"{BIGGEST + 1}-1", f"1-{2**31}", "9" * 20 + "-1", "1-1' OR 1=1"])  # fmt: skip
def test_a_cursor_that_is_none_is_refused(database, rows, after) -> None:
    """Text that no answer gave is no cursor, and reaches no statement."""
    with pytest.raises(InvalidCursor):
        inspection.job_logs(database, rows.job(), after=after)


def test_the_largest_cursor_is_one(database, rows) -> None:
    """Behind the last line that there could be there is nothing, which is no error."""
    assert inspection.job_logs(database, rows.job(), after=f"{BIGGEST}-{2**31 - 1}").items == ()


def test_contradictions_are_refused(database, rows) -> None:
    """On from a line and the newest lines exclude each other; a level is one of five words."""
    job_id = rows.job()
    with pytest.raises(ConfigurationError, match="give one of the two"):
        inspection.job_logs(database, job_id, after="1-1", tail=3)
    with pytest.raises(ConfigurationError, match="there is no level 'LOUD'") as caught:
        inspection.job_logs(database, job_id, level="LOUD")
    assert caught.value.hint == "known: DEBUG, INFO, WARNING, ERROR, CRITICAL"


def test_sizes_are_brought_into_range(connection, database, rows) -> None:
    """A page has one line at least and a thousand at most."""
    job_id = rows.running(rows.worker("w"))
    connection.execute(
        "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, level, logger, message) SELECT %s, 1, g, 1, 20, 'shop', 'm' FROM generate_series(1, 1100) g",
        (job_id,),
    )
    assert [len(inspection.job_logs(database, job_id, limit=limit).items) for limit in (-5, 0, 7, 1_000, 5_000)] == [1, 1, 7, 1_000, 1_000]
    assert len(inspection.job_logs(database, job_id, tail=5_000).items) == 1_000
    assert len(inspection.job_logs(database, job_id).items) == inspection.DEFAULT_LINES


@pytest.fixture(scope="module")
def many_days(server) -> Iterator[psycopg.Connection]:
    """A connection to a database with sixty days of logs of many jobs, job 7 among them on each day, and one that logged very much."""
    with server.temporary() as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(2, DAYS + 1):
            day = datetime.now(UTC).date() - timedelta(days=number)
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS jobrunner.job_logs_{day:%Y%m%d} PARTITION OF jobrunner.job_logs "
                f"FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
            )
        connection.execute(
            "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message) "
            "SELECT g %% 20, 1 + d, g, 1, date_trunc('day', now(), 'UTC') - d * interval '1 day' + g * interval '1 s', 20, 'shop', repeat('x', 80) "
            "FROM generate_series(0, %s) AS d, generate_series(1, %s) AS g",
            (DAYS - 1, LINES_A_DAY),
        )
        connection.execute(
            "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message) "
            "SELECT %s, 1, g, 1, date_trunc('day', now(), 'UTC') - interval '25 hours' + g * interval '100 ms', 20, 'shop', repeat('x', 80) "
            "FROM generate_series(1, %s) AS g",
            (NOISY, NOISY_LINES),
        )
        connection.execute("VACUUM ANALYZE jobrunner.job_logs")
        yield connection


def explain(connection, wanted) -> Plan:
    """The plan of a page as psycopg would send it."""
    compiled = statement(wanted, LIMIT).compile(dialect=postgresql.psycopg.dialect())
    with connection.transaction(force_rollback=True):
        row = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + str(compiled), compiled.params).fetchone()
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])


def days_read(plan) -> set[date]:
    """The days whose partition the plan names."""
    names = {node["Relation Name"] for node in plan.scans("job_logs_")}
    return {datetime.strptime(name.removeprefix("job_logs_"), "%Y%m%d").replace(tzinfo=UTC).date() for name in names if name[-1].isdigit()}


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("days", [0, 3, 30])
def test_only_days_since_the_job_was_created_are_looked_at(many_days, newest, days) -> None:
    """A young job's log costs the same however many days of logs there are: its days are read by index, the others are not named."""
    now = datetime.now(UTC)
    first = now - timedelta(days=days)
    plan = explain(many_days, Wanted(7, first, now, newest=newest))
    assert days_read(plan) == {first.date() + timedelta(days=number) for number in range(days + 1)}, plan.outline()
    assert not plan.sequential("job_logs_2"), plan.outline()
    assert plan.rows_read("job_logs_2") <= 2 * LIMIT, plan.outline()  # when there are few it may read all of its lines and sort them
    assert plan.buffers <= 2 * LIMIT + 10 * (days + 1), plan.buffers


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("start", [None, LineKey(1, NOISY_LINES // 2)])
def test_a_page_of_a_long_log_is_a_range_of_an_index(many_days, newest, start) -> None:
    """Of a job that logged a hundred thousand lines a page reads a page, at either end and in the middle."""
    now = datetime.now(UTC)
    plan = explain(many_days, Wanted(NOISY, now - timedelta(days=2), now, start=start, newest=newest))
    assert plan.rows_read("job_logs_2") <= LIMIT + 10, plan.outline()
    assert not any(node["Node Type"] in ("Sort", "Incremental Sort") for node in plan.nodes()), plan.outline()
    assert plan.buffers <= LIMIT + 40, plan.buffers


@pytest.mark.parametrize("newest", [False, True])
def test_a_page_in_the_middle_begins_at_its_line(many_days, newest) -> None:
    """Reading on costs a page, not everything before it."""
    now = datetime.now(UTC)
    wanted = Wanted(7, now - timedelta(days=30), now, start=LineKey(15, LINES_A_DAY // 2), newest=newest)
    plan = explain(many_days, wanted)
    assert plan.rows_read("job_logs_2") <= LIMIT + 31, plan.outline()
    assert plan.buffers <= LIMIT + 10 * 31, plan.buffers


def test_the_log_of_a_finished_job_ends_with_it(many_days) -> None:
    """Days after a job's end are not looked at."""
    now = datetime.now(UTC)
    end = now - timedelta(days=20)
    plan = explain(many_days, Wanted(7, end - timedelta(days=1), end))
    assert max(days_read(plan)) == end.date()
    assert [later - earlier for earlier, later in pairwise(sorted(days_read(plan)))] == [timedelta(days=1)]


@pytest.mark.parametrize(("attempt", "level"), [(9, None), (None, 50), (9, 50)])
def test_a_choice_reads_no_other_job(many_days, attempt, level) -> None:
    """A choice of lines that no line fits reads the job's own lines, and no more."""
    now = datetime.now(UTC)
    plan = explain(many_days, Wanted(7, now - timedelta(days=3), now, attempt=attempt, level=level))
    assert not plan.sequential("job_logs_2"), plan.outline()
    assert plan.rows_read("job_logs_2") <= 4 * LINES_A_DAY // 20, plan.outline()
