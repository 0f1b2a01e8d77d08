"""What the pages and the API read of message queues and topics: right, and by index however much there is."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy.dialects import postgresql

from jobrunner.database import Database
from jobrunner.inspection import count_messages, list_dead_messages, list_topics
from jobrunner.inspection.groups import _TOPICS as TOPICS
from jobrunner.inspection.messages import _DEAD as DEAD
from jobrunner.inspection.reading import _BEGIN as BEGIN
from jobrunner.settings import MESSAGE_TASK, parse_dsn
from tests.support.explain import Plan
from tests.support.history import Past

LETTERS, SHOWN = 60_000, 51
NEWEST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
FILL = f"""
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff,
    backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at)
SELECT g, CASE WHEN g % 2 = 0 THEN '{MESSAGE_TASK}' ELSE 'task.' || (g % 9) END, '{{"body": {{"n": 1}}}}', CASE WHEN g % 4 = 0 THEN 'emails' ELSE 'parcels' END, 0,
    ARRAY[]::text[], t, t, CASE WHEN g % 3 = 0 THEN 'failed' WHEN g % 7 = 0 THEN 'quarantined' ELSE 'succeeded' END, 1, 1, 5, 'exponential', '5 s', '1 h', 1, 0, 3, t
FROM (SELECT g, '{NEWEST}'::timestamptz - interval '40 hours' + g * interval '2 s' AS t FROM generate_series(1, {LETTERS}) AS g) AS rows
"""


@pytest.fixture
def database(dsn):
    opened = Database(parse_dsn(dsn, "test"))
    yield opened
    opened.close()


def letter(connection, number, queue="emails", args='{"body": 1}', **columns):
    """One dead message, as plain SQL may write it."""
    values = {"id": number, "queue": queue, "args": args, "task": MESSAGE_TASK, "state": "failed", "finished_at": "2026-01-01 12:00+00", **columns}
    connection.execute(
        "INSERT INTO jobrunner.job_history (id, queue, args, task, state, finished_at, priority, tags, created_at, run_at, lease, attempt, max_attempts, "
        "backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes) VALUES (%(id)s, %(queue)s, %(args)s, %(task)s, %(state)s, "
        "%(finished_at)s, 0, '{}', now(), now(), 1, 3, 3, 'constant', '0', '0', 0, 0, 1)",
        values,
    )


def test_dead_messages_of_one_queue_and_of_all(database, connection):
    """The newest first, those of one moment by id; what succeeded, was cancelled or is no message is none."""
    at = connection.execute("SELECT now(), now() + interval '1 minute'").fetchone()
    for number, queue, when in ((1, "emails", 0), (2, "parcels", 0), (3, "emails", 0), (4, "emails", 1)):
        letter(connection, number, queue, finished_at=at[when])
    letter(connection, 5, state="succeeded", finished_at=at[1])
    letter(connection, 6, state="cancelled", finished_at=at[1])
    letter(connection, 7, task="mail.send", finished_at=at[1])
    assert [found.id for found in list_dead_messages(database, limit=9)] == [4, 3, 2, 1]
    assert [found.id for found in list_dead_messages(database, "emails", limit=9)] == [4, 3, 1]
    first = list_dead_messages(database, limit=2)
    assert [found.id for found in list_dead_messages(database, before=(first[-1].died_at, first[-1].id), limit=2)] == [2, 1]
    assert list_dead_messages(database, "nothing", limit=9) == ()


@pytest.mark.parametrize(
    ("args", "body", "headers"),
    [
        ('{"body": {"to": "ana"}, "headers": {"h": 1}}', '{"to": "ana"}', '{"h": 1}'), ('{"body": null}', "null", "{}"),
        ('{"to": "ana"}', '{"to": "ana"}', "{}"), ('{"body": "x", "headers": [1]}', '"x"', "{}"), ("{}", "{}", "{}"),
    ],
)  # fmt: skip
def test_a_body_is_what_a_consumer_would_get(database, connection, args, body, headers):
    """Without one the whole of the arguments is it; headers that are none are left out; a long one is cut where only its beginning is asked for."""
    letter(connection, 1, args=args, finished_at=connection.execute("SELECT now()").fetchone()[0])
    (found,) = list_dead_messages(database, limit=9)
    assert (found.body, found.headers) == (body, headers)
    (cut,) = list_dead_messages(database, limit=9, width=3)
    assert cut.body == body[:3]


def test_messages_that_wait_are_counted(database, connection):
    """Due or not; other jobs of the queue, and what is held, are not among them."""
    connection.execute(
        "INSERT INTO jobrunner.jobs (task, queue, args, run_at) VALUES (%(m)s, 'emails', '{}', now()), (%(m)s, 'emails', '{}', now() + interval '1 h'), "
        "(%(m)s, 'others', '{}', now()), ('mail.send', 'emails', '{}', now())",
        {"m": MESSAGE_TASK},
    )
    assert (count_messages(database, "emails"), count_messages(database, "nothing")) == (2, 0)


def test_topics_of_the_log_and_of_groups(database, connection):
    """Both are listed by name: what has events, with the last of them, and what only has groups."""
    assert list_topics(database) == ()
    for topic in ("b", "a", "b"):
        connection.execute("SELECT jobrunner.publish(%s, 'x', '1'::jsonb)", (topic,))
    connection.execute("INSERT INTO jobrunner.subscriptions (topic, group_name, mode, task, patterns) VALUES ('c', 'g', 'queue', 't', '{#}'), ('a', 'h', 'queue', 't', '{#}')")
    last = connection.execute("SELECT max(position) FROM jobrunner.events").fetchone()[0]
    found = list_topics(database)
    assert [(row.name, row.last_position, [group.group for group in row.groups]) for row in found] == [("a", last - 1, ["h"]), ("b", last, []), ("c", None, ["g"])]


def plan_of(connection, statement, **given) -> Plan:
    """The plan of a statement as a page has it."""
    dialect = postgresql.psycopg.dialect()
    compiled = statement.bindparams(**given).compile(dialect=dialect)
    settings = BEGIN.bindparams(statement_ms="0", lock_ms="0").compile(dialect=dialect)
    with connection.transaction(force_rollback=True):
        connection.execute(str(settings), settings.params)
        row = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + str(compiled), compiled.params).fetchone()
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])


def test_pages_of_many_dead_messages_and_events_read_few_rows(fresh_dsn):
    """Of tens of thousands of each, a page of dead messages and the list of topics read what they show, anywhere in the list."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        for ago in range(4):
            Past(connection).day(ago)
        connection.execute(FILL)
        connection.execute(
            "INSERT INTO jobrunner.events (position, topic, name, payload) SELECT g, 'topic ' || g % 3, 'x', '1' FROM generate_series(1, 60000) AS g"
        )
        for table in ("job_history", "events"):
            connection.execute(f"VACUUM ANALYZE jobrunner.{table}")
        middle = connection.execute("SELECT finished_at, id FROM jobrunner.job_history WHERE id = %s", (LETTERS // 2,)).fetchone()
        assert middle is not None
        for queue in (None, "emails"):
            for at, number in ((None, None), middle):
                plan = plan_of(connection, DEAD, queue=queue, task=MESSAGE_TASK, at=at, id=number, most=SHOWN, width=400)
                assert not plan.sequential("job_history_2"), plan.outline()
                assert plan.rows_read("job_history") <= 8 * SHOWN, plan.outline()
        plan = plan_of(connection, TOPICS, most=200)
        assert plan.rows_read("events") <= 100, plan.outline()
