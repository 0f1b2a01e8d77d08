"""Pages and counts of jobs against a filter of a few lines in Python: every filter, from every place, in both directions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobrunner import inspection
from jobrunner.database import Database
from jobrunner.filters import FINISHED_WORDS, LIVE_WORDS, STATE_WORDS, JobFilter, Pattern
from jobrunner.inspection import Count, lists
from jobrunner.inspection.ranges import MAX_NAMES, NEXT_DAYS
from jobrunner.inspection.reading import reading
from jobrunner.settings import parse_dsn

if TYPE_CHECKING:
    from datetime import datetime

SHOPS = MAX_NAMES + 6  # tasks with one beginning: more than are merged by name
TASKS = [*(f"shop.{number}" for number in range(SHOPS)), "mail.send", "mail_send", "100%", "back\\slash", 'a "quoted" one', "star*", "SHOP.1"]
BEGINNINGS = ["", "shop.", "shop.1", "mail", "100%", "back\\", "nobody"]
QUEUES = ["default", "mail", "de_fault", "über"]
LIVE, FINISHED, DAYS_AHEAD = 80, 260, 2
PATIENCE = timedelta(minutes=1)  # of a read: how long it takes is no matter of this test
DAYS = 3 * NEXT_DAYS.days + 2  # of history: pages begin in the first of them, end in the last, and lie between

# Row n of each table is what its number makes it: no two runs differ. Several jobs end at one instant, some of them in days to come, as
# those of hosts or of dumps with another clock do.
PICK = "(%(names)s::text[])[1 + ('x' || substr(md5('{what}' || n), 1, 7))::bit(28)::int %% cardinality(%(names)s::text[])]"
LIVE_ROWS = f"""
INSERT INTO jobrunner.jobs (task, queue, run_at, state, attempt, lease, worker_id, claimed_at)
SELECT {PICK.format(what="task")}, {PICK.format(what="queue").replace("names", "queues")},
       now() + CASE n %% 3 WHEN 0 THEN interval '1 day' ELSE interval '-1 day' END,
       CASE n %% 5 WHEN 0 THEN 'running' ELSE 'queued' END, CASE WHEN n %% 5 = 0 OR n %% 7 = 0 THEN 1 ELSE 0 END,
       CASE WHEN n %% 5 = 0 THEN 1 ELSE 0 END, CASE WHEN n %% 5 = 0 THEN 1 END, CASE WHEN n %% 5 = 0 THEN now() END
FROM generate_series(1, %(count)s) AS n
"""
FINISHED_ROWS = f"""
INSERT INTO jobrunner.job_history (id, task, args, queue, priority, tags, created_at, run_at, state, lease, attempt, max_attempts,
    backoff, backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, finished_at)
SELECT nextval('jobrunner.jobs_id_seq'), {PICK.format(what="task")}, '{{}}', {PICK.format(what="queue").replace("names", "queues")}, 0, '{{}}', at, at,
       (ARRAY['succeeded', 'succeeded', 'failed', 'cancelled', 'quarantined'])[1 + n %% 5], 1, 1, 5, 'exponential', '5 s', '1 h', 1, 0, 3, at
FROM generate_series(1, %(count)s) AS n,
     LATERAL (SELECT date_trunc('hour', now()) + make_interval(days => %(ahead)s - n * 7 %% %(days)s, hours => n %% 3) AS at) AS ended
"""
ROWS = "SELECT id, task, queue, state, finished_at FROM jobrunner.v_jobs"


class Row(NamedTuple):
    """One job, as the public view has it."""

    id: int
    task: str
    queue: str
    state: str
    finished_at: datetime | None


class Shelf(NamedTuple):
    """The database and what is in it, in the order of the list."""

    database: Database
    rows: list[Row]


@pytest.fixture
def shelf(connection, dsn, monkeypatch):
    monkeypatch.setattr(lists, "reading", lambda database, *_: reading(database, PATIENCE))
    connection.execute(LIVE_ROWS, {"names": TASKS, "queues": QUEUES, "count": LIVE})
    connection.execute(FINISHED_ROWS, {"names": TASKS, "queues": QUEUES, "count": FINISHED, "ahead": DAYS_AHEAD, "days": DAYS})
    found = [Row(*row) for row in connection.execute(ROWS).fetchall()]
    live = sorted((row for row in found if row.finished_at is None), key=lambda row: -row.id)
    past = sorted((row for row in found if row.finished_at is not None), key=lambda row: (row.finished_at, row.id), reverse=True)
    database = Database(parse_dsn(dsn, "test"))
    yield Shelf(database, live + past)
    database.close()


def matches(row, wanted):
    """What a filter means, said once more."""
    return (
        (not wanted.states or row.state in wanted.states)
        and row.state not in wanted.not_states
        and (not wanted.tasks or any(pattern.matches(row.task) for pattern in wanted.tasks))
        and not any(pattern.matches(row.task) for pattern in wanted.not_tasks)
        and (not wanted.queues or row.queue in wanted.queues)
        and row.queue not in wanted.not_queues
        and (not wanted.ids or row.id in wanted.ids)
        and row.id not in wanted.not_ids
    )


def some(values, most=3):
    """A few different ones, more often none."""
    return st.one_of(st.just(()), st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple))


patterns = some([*map(Pattern, [*TASKS[::5], "nobody"]), *(Pattern(text, prefix=True) for text in BEGINNINGS)])
states = some(STATE_WORDS, most=4).map(frozenset)
places = some(range(0, LIVE + FINISHED, 9), most=8)  # of rows, whose ids the test fills in
filters = st.builds(
    JobFilter,
    states=states, tasks=patterns, queues=some([*QUEUES, "nowhere"]), ids=places, not_states=states, not_tasks=patterns, not_queues=some(QUEUES),
    not_ids=places,
)  # fmt: skip


def of_these(shelf, wanted):
    """The filter with ids for places."""
    ids, not_ids = (tuple(shelf.rows[place].id for place in found) for found in (wanted.ids, wanted.not_ids))
    return JobFilter(**{**{name: getattr(wanted, name) for name in wanted.__dataclass_fields__}, "ids": ids, "not_ids": not_ids})


def test_the_rows_are_of_every_kind(shelf):
    """There is something to be wrong about: all states, days before, beside and behind the border, days to come, and equal instants."""
    assert {row.state for row in shelf.rows} == set(STATE_WORDS)
    assert len(shelf.rows) == LIVE + FINISHED
    ends = [row.finished_at for row in shelf.rows if row.finished_at is not None]
    assert len(set(ends)) < len(ends) / 2
    assert max(ends) - min(ends) > 3 * NEXT_DAYS
    assert {row.task for row in shelf.rows} == set(TASKS)


@settings(max_examples=80)
@given(wanted=filters, size=st.sampled_from([40, 77, 200]))
def test_pages_are_the_rows_in_their_order(shelf, wanted, size):
    """From the newest to the oldest, page by page, are exactly the rows that match; and each way back leads to the page before."""
    wanted = of_these(shelf, wanted)
    expected = [row.id for row in shelf.rows if matches(row, wanted)]
    cursor, place = None, 0
    while True:
        page = inspection.list_jobs(shelf.database, filter=wanted, cursor=cursor, limit=size)
        assert [job.id for job in page.items] == expected[place : place + size]
        assert (page.next is not None) == (len(expected) > place + size)
        assert (page.prev is not None) == (place > 0)
        if page.prev is not None:
            before = inspection.list_jobs(shelf.database, filter=wanted, cursor=page.prev, limit=size)
            assert [job.id for job in before.items] == expected[place - size : place]
        if page.next is None:
            break
        cursor, place = page.next, place + size


@settings(max_examples=80)
@given(wanted=filters)
def test_counts_are_the_numbers_of_rows(shelf, wanted):
    """The count of a filter, and those by state of its other terms, are what counting the rows gives."""
    wanted = of_these(shelf, wanted)
    assert inspection.count_jobs(shelf.database, wanted) == Count(sum(matches(row, wanted) for row in shelf.rows), exact=True)
    others = wanted.without_states()
    assert inspection.count_states(shelf.database, wanted) == {
        word: Count(sum(matches(row, others) and row.state == word for row in shelf.rows), exact=True) for word in (*LIVE_WORDS, *FINISHED_WORDS)
    }
