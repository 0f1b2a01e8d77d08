"""The daily partitions of history, attempts and logs: made ahead, filled, and dropped when their time is over."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from psycopg.errors import LockNotAvailable

from jobrunner import migrate, schema
from tests.support.waiting import wait_until

TABLES = len(schema.PARTITIONED)
FINISHED = """
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at)
VALUES (1, 'add', '{{}}', 'default', 0, '{{}}', now(), now(), 'succeeded', 1, 1, 5, 'exponential', '5 s', '1 h', 1, 0, 3, {})
RETURNING tableoid::regclass::text
"""
LOGGED = """
INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, logged_at, level, logger, message)
VALUES (1, 1, 1, 1, {}, 20, 'shop', 'sold')
RETURNING tableoid::regclass::text
"""
AT_THE_GATE = """
SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""


def finish(connection, finished_at="now()"):
    """Insert a history row that ended then; returns the partition it is in."""
    return connection.execute(FINISHED.format(finished_at)).fetchone()[0].removeprefix("jobrunner.")


def day(connection, days=0):
    """The name that a partition of history has for today, or so many days later."""
    return connection.execute(
        "SELECT 'job_history_' || to_char((now() AT TIME ZONE 'UTC') + %s, 'YYYYMMDD')", (timedelta(days),)
    ).fetchone()[0]


def detach_today(connection):
    """Take the state of a database that nobody kept for days: no partition for today."""
    ensure(connection)
    for parent in schema.PARTITIONED:
        connection.execute(f"DROP TABLE jobrunner.{day(connection).replace('job_history', parent)}")


def ensure(connection, ahead=7):
    """How many partitions were made."""
    return connection.execute("SELECT jobrunner.ensure_partitions(%s)", (ahead,)).fetchone()[0]


def test_partitions_are_made_ahead(empty_dsn):
    """From yesterday to `ahead` days from now there is a partition a day for history, attempts and logs, and a second call makes none."""
    migrate.upgrade(empty_dsn)  # today: the template of the run may be of yesterday
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        assert ensure(connection, 7) == 0
        assert ensure(connection, 10) == TABLES * 3
        assert ensure(connection, 10) == 0
        assert [finish(connection, f"now() + interval '{days} days'") for days in (-1, 0, 10)] == [day(connection, n) for n in (-1, 0, 10)]
        assert migrate.drift(empty_dsn) == []


def test_a_day_ends_in_utc(fresh_dsn):
    """The partition of an instant does not depend on anybody's time zone."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        today = day(connection)
        ensure(connection, 7)
        connection.execute("SET TIME ZONE 'Pacific/Auckland'")
        assert finish(connection, "date_trunc('day', now(), 'UTC')") == today
        assert finish(connection, "date_trunc('day', now(), 'UTC') + interval '1 day' - interval '1 us'") == today
        assert ensure(connection, 7) == 0


def test_a_far_day_lands_in_the_default_partition(fresh_dsn):
    """An insert never fails for want of a partition."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        assert finish(connection, "now() + interval '400 days'") == "job_history_default"
        assert finish(connection, "now() - interval '400 days'") == "job_history_default"


def test_rows_move_out_of_the_default_partition(fresh_dsn):
    """When a day gets its partition, the rows that waited in the default one are in it, and those of other days stay."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        detach_today(connection)
        assert finish(connection) == "job_history_default"
        finish(connection, "now() + interval '400 days'")
        assert ensure(connection) == TABLES
        rows = connection.execute("SELECT tableoid::regclass::text, count(*) FROM jobrunner.job_history GROUP BY 1 ORDER BY 1").fetchall()
        assert rows == [(f"jobrunner.{day(connection)}", 1), ("jobrunner.job_history_default", 1)]


def test_a_row_that_commits_meanwhile_does_not_stop_the_partition(fresh_dsn):
    """An insert into the default partition that commits while its day gets a partition is waited for, and moved as well."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection, psycopg.connect(fresh_dsn) as finisher:
        detach_today(connection)
        finish(finisher)
        made = []
        with psycopg.connect(fresh_dsn, autocommit=True) as other:
            maker = threading.Thread(target=lambda: made.append(ensure(other)))
            maker.start()
            pid = other.info.backend_pid
            wait_until(
                lambda: connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone() == (True,),
                timeout=30,
                what="the partition waiting for the insert",
            )
            finisher.commit()
            maker.join()
        assert made == [TABLES]
        assert connection.execute("SELECT tableoid::regclass::text FROM jobrunner.job_history").fetchall() == [
            (f"jobrunner.{day(connection)}",)
        ]


def test_many_make_partitions_at_once(fresh_dsn):
    """Of four sessions that make the same days at once, each is made once and nobody fails."""
    with psycopg.connect(fresh_dsn) as gate:
        ensure(gate)
        gate.commit()
        gate.execute("SELECT pg_advisory_xact_lock(hashtextextended('jobrunner.ensure_partitions', 0))")
        made: list[int] = []

        def make() -> None:
            with psycopg.connect(fresh_dsn, autocommit=True) as connection:
                made.append(ensure(connection, 12))

        makers = [threading.Thread(target=make) for _ in range(4)]
        for maker in makers:
            maker.start()
        with psycopg.connect(fresh_dsn, autocommit=True) as watch:
            wait_until(
                lambda: watch.execute(AT_THE_GATE).fetchone() == (4,),
                timeout=30,
                what="four sessions at the gate",
            )
        gate.rollback()
        for maker in makers:
            maker.join()
    assert sorted(made) == [0, 0, 0, TABLES * 5]


def old_days(connection, parent, *days):
    """Make partitions of a table for these days, each with a row at its first and at its last instant; their names."""
    names = []
    for each in days:
        name = f"{parent}_{each:%Y%m%d}"
        low, high = (f"{instant:%Y-%m-%d} 00:00+00" for instant in (each, each + timedelta(days=1)))
        connection.execute(f"CREATE TABLE jobrunner.{name} PARTITION OF jobrunner.{parent} FOR VALUES FROM ('{low}') TO ('{high}')")
        insert = FINISHED if parent == "job_history" else LOGGED
        for instant in (f"'{low}'", f"timestamptz '{high}' - interval '1 us'"):
            assert connection.execute(insert.format(instant)).fetchone() == (f"jobrunner.{name}",)
        names.append(name)
    return names


def drop(connection, parent, before, most=100):
    """How many partitions were dropped."""
    return connection.execute("SELECT jobrunner.drop_partitions(%s, %s, %s)", (parent, before, most)).fetchone()[0]


def partitions(connection, parent):
    """The names of a table's partitions."""
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1"
    return [name.removeprefix("jobrunner.") for (name,) in connection.execute(query, (f"jobrunner.{parent}",)).fetchall()]


@pytest.mark.parametrize("parent", ["job_history", "job_logs"])
def test_days_that_are_over_are_dropped_oldest_first(fresh_dsn, parent):
    """A day goes when it has ended by `before`, to the microsecond; at most `most` go; younger days and other tables stay."""
    days = [date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)]
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        others = {table: partitions(connection, table) for table in schema.PARTITIONED}
        first, second, third = old_days(connection, parent, *days)
        end_of_first = datetime(2024, 2, 29, tzinfo=UTC)
        assert drop(connection, parent, end_of_first - timedelta(microseconds=1)) == 0
        assert drop(connection, parent, end_of_first) == 1
        assert first not in partitions(connection, parent)
        assert drop(connection, parent, datetime(2024, 6, 1, tzinfo=UTC), most=1) == 1
        assert [second in partitions(connection, parent), third in partitions(connection, parent)] == [False, True]
        assert drop(connection, parent, datetime(2024, 6, 1, tzinfo=UTC), most=0) == 0
        assert drop(connection, parent, datetime(2024, 6, 1, tzinfo=UTC)) == 1
        assert {table: partitions(connection, table) for table in schema.PARTITIONED} == others
        assert migrate.drift(fresh_dsn) == []


def test_the_default_partition_is_never_dropped(fresh_dsn):
    """Rows of days without a partition stay, and the table goes on taking them, even when every day is dropped."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(LOGGED.format("'2024-01-01 12:00+00'"))
        days = len(partitions(connection, "job_logs")) - 1
        assert drop(connection, "job_logs", datetime(9000, 1, 1, tzinfo=UTC)) == days
        assert partitions(connection, "job_logs") == ["job_logs_default"]
        assert connection.execute("SELECT count(*) FROM jobrunner.job_logs").fetchone() == (1,)
        assert connection.execute(LOGGED.format("now()")).fetchone() == ("jobrunner.job_logs_default",)


def test_a_days_end_does_not_depend_on_the_time_zone(fresh_dsn):
    """The same instant drops the same days, whatever zone the session is in."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        old_days(connection, "job_logs", date(2024, 2, 29))
        for zone in ("Pacific/Auckland", "America/Los_Angeles"):
            connection.execute(f"SET TIME ZONE '{zone}'")
            assert drop(connection, "job_logs", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)) == 0
        assert drop(connection, "job_logs", datetime(2024, 3, 1, tzinfo=UTC)) == 1


def test_a_table_that_somebody_attached_is_left_alone(fresh_dsn):
    """Only partitions with a name that ensure_partitions gives are dropped."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        for name, low, high in (("job_logs_archive", "2020-01-01", "2021-01-01"), ("archive_20190101", "2019-01-01", "2019-01-02")):
            connection.execute(
                f"CREATE TABLE jobrunner.{name} PARTITION OF jobrunner.job_logs FOR VALUES FROM ('{low} 00:00+00') TO ('{high} 00:00+00')"
            )
        assert drop(connection, "job_logs", datetime(2022, 1, 1, tzinfo=UTC)) == 0
        assert {"job_logs_archive", "archive_20190101"} < set(partitions(connection, "job_logs"))


def test_a_drop_gives_way_to_a_reader(fresh_dsn):
    """With a lock_timeout a drop that meets a report ends with that error and has dropped nothing."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection, psycopg.connect(fresh_dsn) as report:
        (name,) = old_days(connection, "job_logs", date(2024, 2, 29))
        report.execute("SELECT count(*) FROM jobrunner.job_logs")
        connection.execute("SET lock_timeout = '20ms'")
        with pytest.raises(LockNotAvailable):
            drop(connection, "job_logs", datetime(2025, 1, 1, tzinfo=UTC))
        report.rollback()
        assert name in partitions(connection, "job_logs")
        assert drop(connection, "job_logs", datetime(2025, 1, 1, tzinfo=UTC)) == 1


def test_of_two_that_drop_the_second_finds_nothing_left(fresh_dsn):
    """Two sessions that drop the same days at once both succeed, and each day is counted once."""
    with (
        psycopg.connect(fresh_dsn, autocommit=True) as connection,
        psycopg.connect(fresh_dsn) as first,
        psycopg.connect(fresh_dsn, autocommit=True) as second,
    ):
        old_days(connection, "job_logs", date(2024, 2, 28), date(2024, 2, 29))
        before = datetime(2025, 1, 1, tzinfo=UTC)
        assert drop(first, "job_logs", before) == 2
        dropped = []
        dropper = threading.Thread(target=lambda: dropped.append(drop(second, "job_logs", before)))
        dropper.start()
        pid = second.info.backend_pid
        wait_until(
            lambda: connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone() == (True,),
            timeout=30,
            what="the second session waiting",
        )
        first.commit()
        dropper.join()
        assert dropped == [0]
