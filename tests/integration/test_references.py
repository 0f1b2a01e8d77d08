"""References: written with their job or not at all, found by any process, taken once, and forgotten with the job."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobrunner import ConfigurationError, DuplicateReference, EnqueueError, JobRunner, LeaseLost, references
from jobrunner.current import JobContext, running
from jobrunner.inserting import insert_one
from jobrunner.maintenance.references import MOST_ROWS, ReferencePruner, Unreferenced
from jobrunner.references import References, Walked
from jobrunner.settings import parse_dsn
from jobrunner.states import State
from jobrunner.store import Store
from tests.support.calls import fill
from tests.support.explain import Plan
from tests.support.rows import LEASE, Scene
from tests.support.waiting import wait_until

BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
PATIENCE = 20  # seconds until a call that should come back is given up
IMPORT = ("import", "file 4711")


@pytest.fixture
def jobs(dsn):
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def load(number: int = 0): ...

    yield jobs
    jobs.close()


@pytest.fixture
def load(jobs):
    return jobs.registry.get("load")


@pytest.fixture
def found(jobs):
    return References(jobs.database)


@pytest.fixture(params=["postgresql+psycopg", "postgresql+psycopg2"])
def engine(dsn, request):
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url.replace("postgresql+psycopg", request.param))
    yield engine
    engine.dispose()


def counts(connection):
    """Jobs and references."""
    return connection.execute("SELECT (SELECT count(*) FROM jobrunner.jobs), (SELECT count(*) FROM jobrunner.job_references)").fetchone()


def test_a_reference_finds_its_job(load, found):
    """By space and key, one or many at once; in another space the same key is another one."""
    first = load.options(reference=IMPORT).enqueue(1)
    second = load.options(reference=("import", "file 4712"), delay=60).enqueue(2)
    other = load.options(reference=("export", "file 4711")).enqueue(3)
    assert found.find(*IMPORT) == first.id
    assert found.find("import", "file 9") is None
    assert found.find_many("import", ["file 4712", "file 9", "file 4711"]) == {"file 4711": first.id, "file 4712": second.id}
    assert found.find("export", "file 4711") == other.id
    assert (found.count("import"), found.count("nothing")) == (2, 0)
    assert found.keys("import") == ["file 4711", "file 4712"]
    assert second.state == "scheduled"


def test_the_row_is_as_without_a_reference(load, connection, jobs):
    """Arguments, options and defaults of a job do not depend on whether it has a reference; its id is the next one."""
    plain = load.options(tags=["a"], delay=60).enqueue(5)
    named = load.options(tags=["a"], delay=60, reference=IMPORT).enqueue(5)
    rows = "SELECT to_jsonb(j) - 'id' - 'created_at' - 'run_at' - 'state', run_at > created_at FROM jobrunner.jobs j WHERE id = %s"
    assert connection.execute(rows, (plain.id,)).fetchone() == connection.execute(rows, (named.id,)).fetchone()
    assert named.id == plain.id + 1


def test_who_uses_none_does_not_pay():
    """The statement of a plain enqueue knows nothing of references."""
    assert "reference" not in insert_one(("task", "args"), delayed=False, unique=False).raw


def test_a_taken_reference_is_refused(load, found, connection):
    """The second job is not written; the error names the reference; the job that has it may be finished by then."""
    first = load.options(reference=IMPORT).enqueue()
    with pytest.raises(DuplicateReference, match="'file 4711' of 'import'") as caught:
        load.options(reference=IMPORT).enqueue()
    assert (caught.value.space, caught.value.key) == IMPORT
    assert isinstance(caught.value, EnqueueError)
    assert counts(connection) == (1, 1)
    Scene(connection).put_into_history(first.id, State.SUCCEEDED)
    with pytest.raises(DuplicateReference):
        load.options(reference=IMPORT).enqueue()
    assert found.find(*IMPORT) == first.id
    assert counts(connection) == (0, 1)


def test_a_reference_is_not_dropped_from_another_job(load, found):
    """Who means the job that had it must not take it from the one that has it by now."""
    first = load.options(reference=IMPORT).enqueue()
    assert found.drop(*IMPORT, job_id=first.id + 1) is None
    assert found.find(*IMPORT) == first.id
    assert found.drop(*IMPORT, job_id=first.id) == first.id
    assert found.find(*IMPORT) is None


def test_a_dropped_reference_is_free(load, found, connection):
    """The job stays, and another may be given the reference."""
    first = load.options(reference=IMPORT).enqueue()
    assert found.drop(*IMPORT) == first.id
    assert found.drop(*IMPORT) is None
    second = load.options(reference=IMPORT).enqueue()
    assert found.find(*IMPORT) == second.id != first.id
    assert counts(connection) == (2, 1)


@pytest.mark.parametrize("commits", [True, False])
def test_a_session_decides_over_job_and_reference(load, found, connection, engine, commits):
    """Both exist exactly when the caller's transaction commits."""
    with Session(engine) as session:
        job = load.options(session=session, reference=IMPORT).enqueue()
        assert counts(connection) == (0, 0)
        session.commit() if commits else session.rollback()
    assert found.find(*IMPORT) == (job.id if commits else None)
    assert counts(connection) == ((1, 1) if commits else (0, 0))


def test_a_refusal_leaves_the_callers_transaction_as_it_was(load, found, connection, engine):
    """After a DuplicateReference the caller goes on and commits what else there is; so on a connection of SQLAlchemy."""
    taken = load.options(reference=IMPORT).enqueue()
    with engine.begin() as caller:
        with pytest.raises(DuplicateReference):
            load.options(connection=caller, reference=IMPORT).enqueue()
        second = load.options(connection=caller, reference=("import", "another")).enqueue()
    assert found.find_many("import", ["file 4711", "another"]) == {"file 4711": taken.id, "another": second.id}
    assert counts(connection) == (2, 2)


@pytest.mark.parametrize("commits", [True, False])
def test_a_second_transaction_waits_for_the_first(load, found, connection, dsn, commits):
    """While another transaction is about to give the reference, enqueue waits: then it is refused, or after a rollback it is the one."""
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    with Session(engine) as session, ThreadPoolExecutor(1) as threads:
        first = load.options(session=session, reference=IMPORT).enqueue()
        rival = threads.submit(load.options(reference=IMPORT).enqueue)
        wait_until(lambda: connection.execute(BLOCKED).fetchone()[0] == 1, timeout=PATIENCE, what="the rival waits for the lock")
        session.commit() if commits else session.rollback()
        refused = isinstance(rival.exception(PATIENCE), DuplicateReference)
    assert refused is commits
    assert found.find(*IMPORT) == (first.id if commits else rival.result().id)
    assert counts(connection) == (1, 1)
    engine.dispose()


def test_of_many_at_once_one_wins(load, connection):
    """However many enqueue with one reference at the same time, one job exists."""
    barrier = threading.Barrier(8)

    def enqueue(_):
        barrier.wait(PATIENCE)
        try:
            return load.options(reference=IMPORT).enqueue().id
        except DuplicateReference:
            return None

    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(enqueue, range(8)))
    assert len([job_id for job_id in ids if job_id is not None]) == 1
    assert counts(connection) == (1, 1)


@pytest.mark.parametrize("holds", [True, False])
def test_a_superseded_attempt_gives_no_reference(load, found, connection, holds):
    """A running job may give its children references; once another attempt runs, neither child nor reference is written."""
    parent = Scene(connection).job(State.RUNNING, task="load")
    context = JobContext(id=parent, task="load", queue="default", attempt=1, max_attempts=5, lease=LEASE if holds else LEASE - 1)
    with running(context):
        child = load.options(reference=IMPORT).enqueue().id if holds else None
        with pytest.raises(DuplicateReference if holds else LeaseLost):
            load.options(reference=IMPORT).enqueue()
    assert found.find(*IMPORT) == child
    assert counts(connection) == ((2, 1) if holds else (1, 0))


def test_a_reference_is_for_one_job(load, connection):
    """Several jobs cannot have it, nor can one that may be there already."""
    with pytest.raises(EnqueueError, match="one reference"):
        load.options(reference=IMPORT).enqueue_many([1, 2])
    with pytest.raises(ConfigurationError, match="unique"):
        load.options(unique=True, reference=IMPORT)
    with pytest.raises(ConfigurationError, match="unique"):
        load.options(reference=IMPORT).options(unique="nightly")
    assert counts(connection) == (0, 0)


@pytest.mark.parametrize("reference", ["import", ("import",), ("import", 4711), ("", "a"), ("a", ""), ("a", "\0"), ("a", "é" * 501), (" a", "b")])
def test_what_can_be_no_reference(load, found, reference):
    """The message names the parameter and what is expected."""
    with pytest.raises(ConfigurationError, match="reference"):
        load.options(reference=reference)
    if isinstance(reference, tuple) and len(reference) == 2:
        with pytest.raises(ConfigurationError, match="reference"):
            found.add(*reference, 1)


def test_the_longest_key_fits(load, found):
    """A key of as many bytes as are allowed can be indexed, whatever they are."""
    key = json.dumps(list(range(4000)))[:1000]
    assert load.options(reference=("s" * 200, key)).enqueue().id == found.find("s" * 200, key)


def test_which_jobs_are_there(load, found, connection):
    """Live ones and those in history; not one that retention has dropped."""
    live, finished, gone = (load.enqueue().id for _ in range(3))
    Scene(connection).put_into_history(finished, State.FAILED)
    connection.execute("DELETE FROM jobrunner.jobs WHERE id = %s", (gone,))
    assert found.there([live, finished, gone]) == {live, finished}
    assert found.there([]) == set()


def test_a_job_that_is_there_gets_a_reference(load, found):
    """By `add`, once."""
    first, second = load.enqueue(), load.enqueue()
    found.add(*IMPORT, first.id)
    with pytest.raises(DuplicateReference):
        found.add(*IMPORT, second.id)
    assert found.find(*IMPORT) == first.id


def test_trimming_keeps_the_newest_and_the_unfinished(load, found, connection):
    """The oldest references of finished jobs go; those of other spaces stay."""
    made = {str(number): load.options(reference=("s", str(number))).enqueue().id for number in range(5)}
    load.options(reference=("t", "0")).enqueue()
    for key in ("0", "2", "4"):
        Scene(connection).put_into_history(made[key], State.FAILED)
    assert sorted(found.trim("s", 2)) == ["0", "2"]
    assert found.keys("s") == ["1", "3", "4"]
    assert found.count("t") == 1


# -- upkeep


def refer(scene, job_id, days=2.0):
    """A reference to a job, as old as that."""
    scene.execute(
        "INSERT INTO jobrunner.job_references (space, key, job_id, created_at) VALUES ('s', %s, %s, now() - %s * interval '1 day')",
        (f"{job_id} {days}", job_id, days),
    )


def referred(scene):
    """The jobs that have references."""
    return scene.one("SELECT coalesce(array_agg(job_id ORDER BY job_id), '{}') FROM jobrunner.job_references")


def test_only_references_of_jobs_that_are_gone_are_forgotten(connection):
    """Live and finished jobs keep theirs whatever their age; of a job that is gone it goes after a day."""
    scene = Scene(connection)
    live, finished = scene.job(), scene.job(State.SUCCEEDED)
    young, old = scene.job() + 1000, scene.job() + 1001
    for job_id in (live, finished, old):
        refer(scene, job_id)
    refer(scene, young, days=0.9)
    assert ReferencePruner()(scene.store) == Unreferenced(looked=4, dropped=1)
    assert referred(scene) == [live, finished, young]


def test_a_step_is_bounded_and_all_are_come_to(connection):
    """A call goes on where the last one ended and begins anew after the end; jobs that keep their references are no obstacle."""
    scene = Scene(connection)
    first = scene.job()
    scene.execute(
        "INSERT INTO jobrunner.job_references"
        " SELECT 's', g::text, CASE WHEN g <= %s THEN %s::bigint ELSE %s::bigint + g END, now() - interval '2 days'"
        " FROM generate_series(1, %s) AS g",
        (MOST_ROWS + 5, first, first, 3 * MOST_ROWS),
    )
    prune = ReferencePruner(budget=0.0)
    assert prune(scene.store) == Unreferenced(looked=MOST_ROWS + 5, dropped=0)  # of one job: not torn apart
    assert prune(scene.store) == Unreferenced(looked=MOST_ROWS, dropped=MOST_ROWS)
    assert prune(scene.store) == Unreferenced(looked=MOST_ROWS - 5, dropped=MOST_ROWS - 5)
    assert set(referred(scene)) == {first}
    scene.execute("DELETE FROM jobrunner.jobs")
    for _ in range(2):  # to the end, and from the beginning
        prune(scene.store)
    assert referred(scene) == []


def test_more_is_said_while_a_day_goes(connection):
    """Upkeep comes back soon as long as much was dropped."""
    assert Unreferenced(looked=MOST_ROWS, dropped=MOST_ROWS).more
    assert not Unreferenced(looked=10 * MOST_ROWS, dropped=MOST_ROWS - 1).more
    assert references.prune(Scene(connection).store, 0, 10) == Walked(None, 0, 0)


def test_a_login_that_may_not_delete(connection, dsn):
    """It leaves the references to other workers, and asks once."""
    scene = Scene(connection)
    refer(scene, 1)
    scene.execute("DO $$ BEGIN CREATE ROLE jobrunner_test_referrer; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    scene.execute("GRANT USAGE ON SCHEMA jobrunner TO jobrunner_test_referrer")
    scene.execute("GRANT SELECT ON ALL TABLES IN SCHEMA jobrunner TO jobrunner_test_referrer")
    try:
        with psycopg.connect(dsn, autocommit=True) as guest:
            guest.execute("SET ROLE jobrunner_test_referrer")
            prune = ReferencePruner()
            assert prune(Store(guest)) == Unreferenced(0, 0)
            assert prune(Store(guest)) == Unreferenced(0, 0)
    finally:
        scene.execute("DROP OWNED BY jobrunner_test_referrer; DROP ROLE jobrunner_test_referrer")
    assert referred(scene) == [1]


@pytest.mark.parametrize("statistics", ["analysed", "stale", "never"])
def test_a_step_reads_in_proportion_to_its_references(fresh_dsn, statistics):
    """However many jobs there are, live and in history, each reference costs a probe of the primary keys."""
    size, batch = 20_000, 100
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        scene = Scene(connection)
        filled = fill(scene, size, statistics)
        scene.execute(
            "INSERT INTO jobrunner.job_references"
            " SELECT 's', g::text, %s + (g %% 2) * 10000000 + g, now() - interval '2 days' FROM generate_series(0, 4999) AS g",
            (filled.first_queued,),
        )
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + references._PRUNE
        for first in (filled.first_queued - 1, 10_000_000):  # of jobs that are live; of jobs that are gone
            with connection.transaction(force_rollback=True):
                (row,) = connection.execute(explain, {"after_id": first, "most": batch}).fetchall()
            plan = Plan(row[0][0]["Plan"], 0)
            assert not plan.sequential("jobs"), plan.outline()
            assert not plan.sequential("job_references"), plan.outline()
            assert plan.rows_read("jobs") <= batch, plan.outline()
            assert plan.rows_read("job_history") <= batch, plan.outline()
            assert plan.rows_read("job_references") <= 3 * batch, plan.outline()
            assert all(name.endswith("_pkey") for name in plan.indexes() if name.startswith("job_history")), plan.outline()
