"""Races of pruning: jobs that are retried, rows that come late, other pruners, and a process that is killed in the middle."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import psycopg
import pytest
from psycopg.errors import LockNotAvailable

from jobrunner.database import Database
from jobrunner.errors import IllegalTransition, JobNotFound
from jobrunner.history import steps, swap
from jobrunner.history.days import Day
from jobrunner.history.steps import Pruning, Taken
from jobrunner.maintenance import prune
from jobrunner.maintenance.history import HistoryPruner, Removed
from jobrunner.settings import Dsn
from jobrunner.store import Store
from tests.support.commands import clean_environment
from tests.support.history import Past
from tests.support.sessions import PATIENCE, sessions_on
from tests.support.waiting import wait_until

SECONDS = 60  # until something that takes one is given up


@pytest.fixture
def past(fresh_dsn, monkeypatch):
    """A database of one's own, in which few rows are none: days are replaced."""
    monkeypatch.setattr(steps, "FEW", 0)
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Past(connection)


@pytest.fixture
def sessions(fresh_dsn):
    """More sessions on it."""
    with sessions_on(fresh_dsn) as opened:
        yield opened


def go(pruning, *names):
    """Take steps until one of these names was done; that step."""
    while (step := pruning.step()) is not None:
        if step.did in names:
            return step
    raise AssertionError(f"nothing of {names} was done")


def did(pruning):
    """What the next step did."""
    step = pruning.step()
    return None if step is None else step.did


def noon(part, at="12:00"):
    """That time of a partition's day."""
    return f"{part[-8:-4]}-{part[-4:-2]}-{part[-2:]} {at}+00"


def two_kinds(past, kept=20, gone=40, ago=31):
    """A day with jobs to keep and jobs that go; (part, ids to keep, ids of cancelled jobs that go)."""
    part = past.day(ago)
    at = noon(part)
    return part, past.put(part, "add", "failed", kept, at), past.put(part, "add", "cancelled", gone, at)


def places(past, job_id):
    """Where a job is: the tables that hold it."""
    query = "SELECT 'jobs' FROM jobrunner.jobs WHERE id = %(id)s UNION ALL SELECT 'history' FROM jobrunner.job_history WHERE id = %(id)s"
    return [row[0] for row in past.execute(query, {"id": job_id}).fetchall()]


@pytest.mark.parametrize("after", ["began", "counted", "copied"])
def test_a_job_retried_while_its_day_is_copied_is_there_once(past, sessions, after):
    """Before or behind the place that is being read, kept or not: a retried job is alive and not in history, and nobody else is touched."""
    part, kept, gone = two_kinds(past)
    pruning, operator = Pruning(past.connection), sessions()
    pruning.pages = 1
    go(pruning, after)
    for job_id in (kept[0], kept[-1], gone[0], gone[-1]):
        operator.store.requeue(job_id)
    go(pruning, "replaced")
    for job_id in (kept[0], kept[-1], gone[0], gone[-1]):
        assert places(past, job_id) == ["jobs"]
    assert past.one(f"SELECT array_agg(id ORDER BY id) FROM jobrunner.{part}") == kept[1:-1]
    assert past.leftovers() == []


def test_a_retry_that_has_not_committed_puts_off_the_replacement(past, sessions):
    """While a retry holds its row the day cannot be replaced; the pruner gives up soon, and does it right after the retry's end."""
    part, kept, _gone = two_kinds(past)
    pruning, operator = Pruning(past.connection), sessions()
    go(pruning, "copied")
    with operator.connection.transaction():
        operator.store.requeue(kept[0])
        with pytest.raises(LockNotAvailable):
            pruning.step()
        assert pruning.at == part
    assert go(pruning, "replaced").part == part
    assert places(past, kept[0]) == ["jobs"]
    assert past.held(part) == {("add", "failed"): 19}


def test_a_retry_that_is_rolled_back_leaves_the_job_in_its_day(past, sessions):
    """What did not happen is not noted: the job is kept."""
    part, kept, _gone = two_kinds(past)
    pruning, operator = Pruning(past.connection), sessions()
    go(pruning, "copied")
    with operator.connection.transaction(force_rollback=True):
        operator.store.requeue(kept[0])
    go(pruning, "replaced")
    assert places(past, kept[0]) == ["history"]
    assert past.held(part) == {("add", "failed"): 20}


def test_a_retry_that_waits_for_the_replacement_finds_the_job_in_the_new_table(past, sessions):
    """A retry that meets the short lock goes on when it is over, on the table that is there then; a job that went is not found."""
    _part, kept, gone = two_kinds(past)
    swapper, operator, other = sessions(), sessions(), sessions()
    go(Pruning(past.connection), "copied")
    with swapper.connection.transaction():
        assert did(Pruning(swapper.connection)) == "replaced"
        waits = operator.call_blocked(lambda: operator.store.requeue(kept[0]), past)
        loses = other.call_blocked(lambda: other.store.requeue(gone[0]), past)
    assert waits.result(PATIENCE) == "default"
    with pytest.raises(JobNotFound, match="may have been removed by retention"):
        loses.result(PATIENCE)
    assert places(past, kept[0]) == ["jobs"]


@pytest.mark.parametrize("kept", [0, 20])
@pytest.mark.parametrize("state", ["failed", "succeeded"])
def test_a_row_that_comes_to_an_old_day_is_seen(past, kept, state):
    """A clock that jumps back puts a row into a day that is being read: the day is read again, and the row is kept if it is to be."""
    part, ids, _gone = two_kinds(past, kept=kept)
    pruning = Pruning(past.connection)
    go(pruning, "copied" if kept else "counted")
    late = past.put("job_history", "late", state, 1, noon(part, "18:00"))
    assert did(pruning) == "began"
    while pruning.step() is not None:
        pass
    assert past.held().get(("late", state), 0) == (1 if state == "failed" else 0)
    assert places(past, late[0]) == (["history"] if state == "failed" else [])
    assert [row[0] for row in past.execute("SELECT id FROM jobrunner.job_history WHERE task = 'add' ORDER BY id").fetchall()] == ids
    assert past.leftovers() == []


def test_a_row_that_is_changed_meanwhile_is_kept_as_it_is_now(past):
    """Somebody mends a row of a day that is being copied: what is kept is the mended row."""
    part, kept, _gone = two_kinds(past)
    pruning = Pruning(past.connection)
    go(pruning, "copied")
    past.execute("UPDATE jobrunner.job_history SET last_error = 'mended' WHERE id = %s", (kept[3],))
    go(pruning, "replaced")
    assert past.one("SELECT last_error FROM jobrunner.job_history WHERE id = %s", (kept[3],)) == "mended"
    assert past.held(part) == {("add", "failed"): 20}


def test_a_day_that_is_rewritten_by_somebody_else_is_begun_anew(past):
    """After a VACUUM FULL the addresses of rows are others: what was copied counts for nothing, and every row is there in the end."""
    part, kept, gone = two_kinds(past)
    pruning = Pruning(past.connection)
    pruning.pages = 1
    go(pruning, "copied")
    past.execute("DELETE FROM jobrunner.job_history WHERE id = ANY (%s)", (gone[:10],))
    past.execute(f"VACUUM FULL jobrunner.{part}")
    assert did(pruning) == "began"
    go(pruning, "replaced")
    assert past.one(f"SELECT array_agg(id ORDER BY id) FROM jobrunner.{part}") == kept


def test_a_copy_that_somebody_drops_is_made_anew(past):
    """Somebody tidies up and takes the copy away: the day is begun anew, and ends as it should."""
    part, kept, _gone = two_kinds(past)
    pruning = Pruning(past.connection)
    go(pruning, "copied")
    past.execute(f"DROP TABLE jobrunner.{part}_kept")
    assert did(pruning) == "began"
    go(pruning, "replaced")
    assert past.one(f"SELECT array_agg(id ORDER BY id) FROM jobrunner.{part}") == kept


def test_rules_that_change_meanwhile_count(past):
    """A rule that comes while a day is being copied holds for that day: nothing is replaced by what the old rules said."""
    part, kept, _gone = two_kinds(past)
    pruning = Pruning(past.connection)
    go(pruning, "copied")
    past.keep(None, state="cancelled")
    assert did(pruning) == "began"
    while pruning.step() is not None:
        pass
    assert past.held(part) == {("add", "failed"): len(kept), ("add", "cancelled"): 40}
    assert past.leftovers() == []


def test_a_day_that_somebody_drops_meanwhile_leaves_nothing_behind(past):
    """The copy of a day that is gone goes with the next step."""
    part, _kept, _gone = two_kinds(past)
    pruning = Pruning(past.connection)
    go(pruning, "copied")
    past.execute(f"DROP TABLE jobrunner.{part}")
    assert pruning.step() is None
    assert past.leftovers() == []
    assert past.one("SELECT count(*) FROM jobrunner.retention_days") == 0


def drop(session, part):
    """Drop a day as one that is over by every rule."""
    day = date(int(part[-8:-4]), int(part[-4:-2]), int(part[-2:]))
    with session.connection.transaction():
        return swap.drop(session.connection, Day("job_history", part, day, True, "", None, 0, 0, 0, None, None, None))


def test_nobody_is_locked_out_while_what_is_on_record_of_a_day_is_looked_up(past, sessions):
    """Before a day is dropped its records are forgotten, whose pages may come from the disk: history can be read as long as that takes."""
    part, kept, gone = two_kinds(past)
    dropper, holder, reader = sessions(), sessions(), sessions.impatient()
    go(Pruning(past.connection), "began")
    with holder.connection.transaction():
        holder.execute("SELECT FROM jobrunner.retention_days WHERE part = %s FOR UPDATE", (part,))
        under_way = dropper.call_blocked(lambda: drop(dropper, part), past)
        assert reader.one("SELECT count(*) FROM jobrunner.job_history") == len(kept) + len(gone)
    assert under_way.result(PATIENCE) == len(kept) + len(gone)
    assert past.leftovers() == []


def test_a_retry_during_the_drop_of_a_day_that_was_being_read_leaves_no_note(past, sessions):
    """The trigger of a day that was being read under other rules notes it after the records were forgotten: they are forgotten once more."""
    part, kept, _gone = two_kinds(past)
    dropper, operator = sessions(), sessions()
    go(Pruning(past.connection), "began")
    with operator.connection.transaction():
        operator.store.requeue(kept[0])
        under_way = dropper.call_blocked(lambda: drop(dropper, part), past)
    under_way.result(PATIENCE)
    assert past.leftovers() == []
    assert past.held() == {}
    assert places(past, kept[0]) == ["jobs"]


def test_pruners_take_turns(past, sessions):
    """While one takes a step another finds the turn taken, waits for nothing, and goes on later where the first one was."""
    two_kinds(past)
    first, second = sessions(), sessions.impatient()
    with first.connection.transaction():
        assert did(Pruning(first.connection)) == "began"
        with pytest.raises(Taken):
            Pruning(second.connection).step()
        assert HistoryPruner()(second.store) == Removed()
    assert did(Pruning(second.connection)) == "counted"


def retry(dsn, ids, alive):
    """What an operator does; the ids that came back go to `alive`."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for job_id in ids:
            with contextlib.suppress(JobNotFound, IllegalTransition):
                Store(connection).requeue(job_id)
                alive.add(job_id)


def remove(dsn):
    """What a pruner does that never gives up."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        pruning = Pruning(connection)
        pruning.pages = 1
        going = True
        while going:
            with contextlib.suppress(Taken, LockNotAvailable):
                going = pruning.step() is not None


def test_many_pruners_and_operators_at_once(past, fresh_dsn):
    """Four pruners and four operators on the same days: each job that goes on is there once, each that is to be kept is kept."""
    days = [two_kinds(past, kept=60, gone=120, ago=ago) for ago in range(31, 40)]
    kept = [job_id for _, ids, _ in days for job_id in ids]
    gone = [job_id for _, _, ids in days for job_id in ids]
    chance = random.Random(4711)
    chosen = [chance.sample(kept, 40) + chance.sample(gone, 40) for _ in range(4)]
    alive: set[int] = set()
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(retry, fresh_dsn, ids, alive) for ids in chosen] + [threads.submit(remove, fresh_dsn) for _ in range(4)]
        for call in calls:
            call.result(SECONDS)
    history = [row[0] for row in past.execute("SELECT id FROM jobrunner.job_history").fetchall()]
    live = [row[0] for row in past.execute("SELECT id FROM jobrunner.jobs").fetchall()]
    assert len(history) == len(set(history))
    assert set(history) & set(live) == set()
    assert set(live) == alive
    assert set(history) | set(live) >= set(kept)
    assert not set(history) & set(gone)
    assert past.leftovers() == []


KILLED = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from jobrunner.history import archive, steps, swap
    from jobrunner.maintenance import prune
    from jobrunner.settings import Dsn
    from jobrunner.database import Database

    dsn, place, files, reached = sys.argv[1:]
    steps.FEW, steps.PAGES = 0, 1

    def stand_still(*_):
        Path(reached).touch()
        time.sleep(600)

    def told(step):
        if place == "between" and step.did == "copied":
            stand_still()

    if place == "fsync":
        os.fsync = stand_still
    if place == "lock":
        swap._take_over_losses = stand_still
    prune(Database(Dsn(dsn, "test")), sink=archive.Files(Path(files)) if place == "fsync" else None, told=told)
    """
)


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["between", "lock", "fsync"])
def test_a_killed_pruner_leaves_nothing_half_done(past, fresh_dsn, tmp_path, place):
    """kill -9 between two steps, in the step that replaces a day, or before a file is safe: every row is there, and the next goes on."""
    part, kept, gone = two_kinds(past)
    files, reached = tmp_path / "archive", tmp_path / "reached"
    files.mkdir()
    command = [sys.executable, "-c", KILLED, fresh_dsn, place, str(files), str(reached)]
    process = subprocess.Popen(command, env=clean_environment())
    try:
        wait_until(lambda: reached.exists() or process.poll() is not None, timeout=SECONDS, what="the pruner stands still")
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
    sessions_left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    wait_until(lambda: past.one(sessions_left) == 0, timeout=SECONDS, what="the server notices")
    assert past.one("SELECT array_agg(id ORDER BY id) FROM jobrunner.job_history") == kept + gone
    assert list(files.glob("*.gz")) == []
    database = Database(Dsn(fresh_dsn, "test"))
    assert prune(database).replaced == (part,)
    database.close()
    assert past.one("SELECT array_agg(id ORDER BY id) FROM jobrunner.job_history") == kept
    assert past.leftovers() == []
