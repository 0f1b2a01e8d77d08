"""Pruning history: whole days go, few rows of a day are deleted, a day with few rows to keep is replaced; nobody loses what is kept."""

from __future__ import annotations

import os
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from jobrunner import migrate
from jobrunner.database import Database
from jobrunner.history import steps
from jobrunner.history.days import due_days, groups_of
from jobrunner.history.steps import Pruning, Step
from jobrunner.maintenance import prune
from jobrunner.maintenance.history import HistoryPruner, Removed
from jobrunner.settings import Dsn
from jobrunner.store import Store
from tests.support.history import Past
from tests.support.sessions import PATIENCE, sessions_on

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
GUEST = f"jobrunner_test_guest_{os.getpid()}"  # roles are of the server, which tests in other processes use at the same time


@pytest.fixture
def past(fresh_dsn):
    """A database of one's own: partitions are made, replaced and dropped."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Past(connection)


@pytest.fixture
def database(fresh_dsn):
    """The same for `prune`."""
    found = Database(Dsn(fresh_dsn, "test"))
    yield found
    found.close()


@pytest.fixture
def sessions(fresh_dsn):
    """More sessions on it."""
    with sessions_on(fresh_dsn) as opened:
        yield opened


def every_step(pruning):
    """Take steps until there is none; what they did, in order, without repeats of the same."""
    did: list[tuple[str, str]] = []
    while (step := pruning.step()) is not None:
        if not did or did[-1] != (step.part, step.did):
            did.append((step.part, step.did))
    return did


def test_a_day_that_is_over_by_every_rule_is_dropped_unread(past, database):
    """Without anything to keep a day goes at once, whatever is in it; a younger one stays."""
    old, young = past.day(182, ("add", "failed", 3), ("add", "succeeded", 5)), past.day(29, ("add", "succeeded", 2))
    assert every_step(Pruning(past.connection)) == [(old, "dropped")]
    assert past.parts() == [young]
    assert past.leftovers() == []
    assert migrate.drift(database.dsn.url) == []


def test_a_day_in_which_some_are_to_be_kept_is_replaced(past, database, monkeypatch):
    """Of a day of which most is too old, the rest is copied, row for row, into a table that takes its place."""
    monkeypatch.setattr(steps, "FEW", 3)
    part = past.day(31, ("add", "succeeded", 40), ("add", "cancelled", 2), ("add", "failed", 3), ("mail", "quarantined", 1))
    before = [row for row in past.whole() if row["state"] in {"failed", "quarantined"}]
    file = past.one("SELECT pg_relation_filenode(%s::regclass)", (f"jobrunner.{part}",))
    did = every_step(Pruning(past.connection))
    assert did == [(part, "began"), (part, "counted"), (part, "began"), (part, "copied"), (part, "replaced")]
    assert past.whole() == before
    assert past.held(part) == {("add", "failed"): 3, ("mail", "quarantined"): 1}
    assert past.one("SELECT pg_relation_filenode(%s::regclass)", (f"jobrunner.{part}",)) != file
    assert past.parts() == [part]
    assert past.leftovers() == []
    assert every_step(Pruning(past.connection)) == []
    assert migrate.drift(database.dsn.url) == []
    # It is a day like any other: it takes rows, and has the indexes of its parent.
    past.put("job_history", "add", "failed", 1, f"{past.today() - 31 * DAY} 23:59:59.999999+00")
    assert past.held(part)["add", "failed"] == 4
    assert past.one("SELECT count(*) FROM pg_indexes WHERE tablename = %s", (part,)) == 6
    assert past.one("SELECT count(*) FROM pg_constraint WHERE conrelid = %s::regclass AND conname = 'of_day'", (f"jobrunner.{part}",)) == 0


def test_few_old_rows_among_many_are_deleted(past):
    """When nearly all of a day stays, it is not copied for the sake of the rest."""
    past.keep(7 * DAY, task="rare")
    part = past.day(9, ("add", "succeeded", 50), ("rare", "succeeded", 4), ("rare", "failed", 1))
    file = past.one("SELECT pg_relation_filenode(%s::regclass)", (f"jobrunner.{part}",))
    assert [did for _, did in every_step(Pruning(past.connection))] == ["began", "counted", "began", "deleted", "settled"]
    assert past.held() == {("add", "succeeded"): 50}
    assert past.one("SELECT pg_relation_filenode(%s::regclass)", (f"jobrunner.{part}",)) == file
    assert past.leftovers() == []


def test_a_day_that_holds_nothing_to_keep_is_dropped(past):
    """A day for which some rule keeps, but which has no such row, is dropped once it was read."""
    part = past.day(40, ("add", "succeeded", 5), ("add", "cancelled", 2))
    assert [did for _, did in every_step(Pruning(past.connection))] == ["began", "counted", "dropped"]
    assert part not in past.parts()
    assert past.leftovers() == []


def test_an_empty_day_goes_too(past):
    """A day on which nothing finished is dropped as soon as any rule has run out for it."""
    part, young = past.day(40), past.day(20)
    assert every_step(Pruning(past.connection)) == [(part, "began"), (part, "dropped")]
    assert past.parts() == [young]
    assert past.leftovers() == []


def test_what_is_done_is_not_read_again_until_the_rules_change(past):
    """A day that was gone through is left alone; another rule that says something else of it makes it be looked into once more."""
    part = past.day(40, ("add", "failed", 5), ("mail", "failed", 2))
    assert every_step(Pruning(past.connection)) == [(part, "began"), (part, "counted"), (part, "settled")]
    assert every_step(Pruning(past.connection)) == []
    past.keep(30 * DAY, task="mail")
    assert every_step(Pruning(past.connection))[-1] == (part, "settled")
    assert past.held() == {("add", "failed"): 5}
    past.keep(None, task="mail")
    every_step(Pruning(past.connection))
    assert past.held() == {("add", "failed"): 5}


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def test_a_day_goes_when_its_last_instant_is_old_enough(past, zone):
    """A day (UTC) is over when `keep` has passed since its end, to the minute, in whatever zone the session thinks."""
    past.execute(f"SET TIME ZONE '{zone}'")
    past.day(5, ("add", "succeeded", 1), at="00:00")
    since_end = past.one("SELECT now() AT TIME ZONE 'UTC' - ((now() AT TIME ZONE 'UTC')::date - 4)::timestamp")
    past.keep(since_end + MINUTE)
    assert every_step(Pruning(past.connection)) == []
    past.keep(since_end - MINUTE)
    assert len(every_step(Pruning(past.connection))) == 1
    assert past.held() == {}


def test_an_instant_on_the_edge_belongs_to_the_day_that_it_begins(past):
    """A job that finished at 00:00 UTC is of the new day; one a microsecond before is of the old one, and goes with it."""
    for ago, at in ((31, "23:59:59.999999"), (30, "00:00")):
        past.day(ago, ("add", "succeeded", 1), at=at)
    past.keep(30 * DAY)
    every_step(Pruning(past.connection))
    assert past.one(
        "SELECT array_agg((now() AT TIME ZONE 'UTC')::date - (finished_at AT TIME ZONE 'UTC')::date) FROM jobrunner.job_history"
    ) == [30]


def test_attempts_stay_as_long_as_any_job_of_their_task(past):
    """An attempt goes by the longest of the rules for its task: its job may have ended in any state."""
    past.keep(7 * DAY, task="quick")
    past.keep(None, task="audit", state="failed")
    groups = [(task, outcome, 2) for task in ("add", "quick", "audit") for outcome in ("retried", "failed")]
    part = past.day(20, *groups, parent="job_attempts")
    every_step(Pruning(past.connection))
    assert {task for task, _ in past.held("job_attempts")} == {"add", "audit"}
    old = past.day(200, *groups, parent="job_attempts")
    every_step(Pruning(past.connection))
    assert {task for task, _ in past.held(old)} == {"audit"}
    assert past.parts("job_attempts") == [old, part]


def test_rows_without_a_day_go_as_well(past, database, monkeypatch):
    """Rows of the default partition, left by a clock that jumped, follow the same rules, some at a time; those to come stay."""
    monkeypatch.setattr(steps, "MOST_STRAY", 4)
    for days, state in ((400, "succeeded"), (40, "succeeded"), (40, "failed"), (-400, "succeeded")):
        past.put("job_history", "add", state, 3, f"{past.today() - days * DAY} 12:00+00")
        past.put("job_attempts", "add", "failed", 1, f"{past.today() - days * DAY} 12:00+00")
    removed = prune(database)
    assert removed == Removed(removed_count=7)
    assert past.held("job_history_default") == {("add", "failed"): 3, ("add", "succeeded"): 3}
    assert past.held("job_attempts_default") == {("add", "failed"): 3}


def test_everything_at_once(past, database, monkeypatch):
    """`prune` goes on until nothing is left to do and says what it came to; asked again it does nothing."""
    monkeypatch.setattr(steps, "FEW", 3)
    gone = past.day(182, ("add", "failed", 3))
    half = past.day(31, ("add", "succeeded", 20), ("add", "failed", 3))
    told: list[Step] = []
    removed = prune(database, told=told.append)
    assert removed == Removed(dropped=(gone,), replaced=(half,), removed_count=23)
    assert {step.part for step in told} == {gone, half}
    assert prune(database) == Removed()


def test_older_than_takes_the_place_of_durations_but_not_of_forever(past, database):
    """A duration given for one run goes before what the rules say; what is kept forever stays."""
    past.keep(None, task="audit")
    past.day(10, ("add", "failed", 3), ("audit", "failed", 2))
    past.day(3, ("add", "failed", 1))
    assert prune(database, older=5 * DAY).removed_count == 3
    assert past.held() == {("audit", "failed"): 2, ("add", "failed"): 1}


def test_a_chore_stops_when_its_time_is_up(past):
    """A worker takes as many steps as its budget allows, at least one, and says that there is more."""
    parts = [past.day(182 + number, ("add", "failed", 1)) for number in range(3)]
    chore = HistoryPruner(budget=0.0)
    assert chore(Store(past.connection)) == Removed(dropped=(parts[2],), removed_count=1, more=True)
    assert past.parts() == [parts[1], parts[0]]
    assert HistoryPruner(budget=PATIENCE)(Store(past.connection)).dropped == (parts[1], parts[0])


def test_a_step_reads_a_bounded_part(past, monkeypatch):
    """A day is read page by page, in as many steps as it takes, and every row is counted and copied once."""
    monkeypatch.setattr(steps, "FEW", 3)
    part = past.day(31, ("add", "succeeded", 300), ("add", "failed", 30), ("mail", "succeeded", 300), ("mail", "failed", 7))
    pruning = Pruning(past.connection)
    pruning.pages = 2
    did = []
    while (step := pruning.step()) is not None:
        did.append(step.did)
    assert did.count("counted") == did.count("copied") > 5
    assert past.held(part) == {("add", "failed"): 30, ("mail", "failed"): 7}
    facts = past.execute("SELECT due_count, kept_count FROM jobrunner.retention_days WHERE part = %s", (part,)).fetchone()
    assert facts == (600, 37)


def test_a_step_reads_only_its_pages(past):
    """The pages of a step are found by their addresses: nothing before or behind them is read."""
    part = past.day(31, ("add", "succeeded", 400), ("add", "failed", 400))
    past.execute(f"VACUUM ANALYZE jobrunner.{part}")
    pruning = Pruning(past.connection)
    pruning.pages = 2
    pruning.step()
    with past.connection.transaction():
        (day,) = due_days(past.connection)
        rows = sql.SQL("(SELECT p.* FROM {} AS p WHERE {}) AS r").format(sql.Identifier("jobrunner", part), pruning._pages_where(day))
        query = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(groups_of(day.parent, rows))
        plan = str(past.one(query, {"day": day.day, "older": None}))
    assert "Tid Range Scan" in plan
    assert "Index Scan" not in plan


def test_a_replacement_is_attached_unread(past, monkeypatch):
    """The lock of the exchange is not held while rows are looked at: the copy is known to fit."""
    monkeypatch.setattr(steps, "FEW", 0)
    part = past.day(31, ("add", "succeeded", 4), ("add", "failed", 4))
    said: list[str] = []
    past.connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    past.execute("SET client_min_messages = 'debug1'")
    every_step(Pruning(past.connection))
    assert f'partition constraint for table "{part}_kept" is implied by existing constraints' in said


def test_a_login_that_does_not_own_the_tables(past, fresh_dsn, caplog):
    """A worker whose login may not drop anything says so once and goes on."""
    past.day(182, ("add", "failed", 1))
    past.execute(f"DO $$ BEGIN CREATE ROLE {GUEST}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    past.execute(f"GRANT USAGE ON SCHEMA jobrunner TO {GUEST}")
    past.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA jobrunner TO {GUEST}")
    caplog.set_level("INFO", "jobrunner.maintenance")
    try:
        with psycopg.connect(fresh_dsn, autocommit=True) as guest:
            guest.execute(f"SET ROLE {GUEST}")
            chore = HistoryPruner()
            assert chore(Store(guest)) == Removed()
            assert chore(Store(guest)) == Removed()
    finally:
        past.execute(f"DROP OWNED BY {GUEST}; DROP ROLE {GUEST}")
    assert past.held() == {("add", "failed"): 1}
    assert [record.getMessage() for record in caplog.records].count("old history stays: only the owner of the tables may remove it") == 1


def test_what_the_server_refuses_stops_nobody(past, database, caplog):
    """A day on which something of somebody else's depends is left, said once, on record, and the others go on."""
    stuck, other = past.day(190, ("add", "failed", 1)), past.day(185, ("add", "failed", 1))
    past.execute(f"CREATE VIEW public.mine AS SELECT id FROM jobrunner.{stuck}")
    chore = HistoryPruner(budget=PATIENCE)
    removed = chore(Store(past.connection))
    assert removed.dropped == (other,)
    assert removed.refused[0][0] == stuck
    assert "other objects depend on it" in removed.refused[0][1]
    assert chore(Store(past.connection)).refused
    assert [record.partition for record in caplog.records if record.levelname == "ERROR"] == [stuck]
    assert "depend" in past.one("SELECT problem FROM jobrunner.retention_days WHERE part = %s", (stuck,))
    past.execute("DROP VIEW public.mine")
    assert prune(database).dropped == (stuck,)


def test_a_report_is_not_disturbed(past, sessions):
    """Somebody reads history for long: a drop gives up soon, so that nobody queues up behind it; it succeeds once the reader is done."""
    part = past.day(182, ("add", "failed", 1))
    reader, pruner, writer = sessions(), sessions(), sessions.impatient()
    with reader.connection.transaction():
        assert reader.one("SELECT count(*) FROM jobrunner.job_history") == 1
        under_way = pruner.call(lambda: HistoryPruner(budget=PATIENCE)(pruner.store))
        writer.execute("SELECT count(*) FROM jobrunner.job_history")
        assert under_way.result(PATIENCE) == Removed(in_use=(part,))
    assert HistoryPruner()(pruner.store).dropped == (part,)
