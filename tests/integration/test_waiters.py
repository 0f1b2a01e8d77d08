"""All who wait in a process share one connection, miss nothing, and outlive an outage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from jobrunner import DatabaseUnreachable, Job, JobNotFound, JobRunner, SchemaMissing, migrate, waiters, watching
from jobrunner.settings import parse_dsn
from jobrunner.waiters import LAST_LOOK, Watcher, watcher_of
from tests.support.endings import finish
from tests.support.rows import Scene
from tests.support.waiting import wait_until

PATIENCE = 20  # seconds until a call that should come back is given up
MANY = 500
OURS = "FROM pg_stat_activity WHERE application_name = 'jobrunner results' AND datname = current_database()"


def runner(dsn):
    jobs = JobRunner(dsn=dsn, wakeups=False)

    @jobs.task
    def work(number: int) -> int: ...  # type: ignore[empty-body]

    return jobs


@pytest.fixture
def jobs(dsn):
    jobs = runner(dsn)
    yield jobs
    jobs.close()
    watcher_of(jobs.dsn).close()


@pytest.fixture
def task(jobs):
    return jobs.registry.get("work")


@pytest.fixture
def patient(monkeypatch):
    """The last look at a job is waited for on a busy machine too."""
    monkeypatch.setattr(waiters, "LAST_LOOK", PATIENCE)


def timed(wait):
    """How long three waits take, the shortest first: a machine that stands still for a moment prolongs the last."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        wait()
        took.append(time.monotonic() - began)
    return sorted(took)


def connections(connection):
    """How many connections of those who wait there are."""
    return Scene(connection).one(f"SELECT count(*) {OURS}")


def is_watched(connection):
    """Whether somebody has been looked for."""
    return Scene(connection).one(f"SELECT count(*) > 0 {OURS} AND query LIKE '%jobrunner:waiting%'")


def test_many_who_wait_cost_the_queries_of_one(fresh_dsn, patient):
    """500 threads that wait three seconds for jobs that do not end make fewer queries than there are threads: the server counted them."""
    jobs = runner(fresh_dsn)
    ids = jobs.registry.get("work").enqueue_many([(number,) for number in range(MANY)])
    jobs.close()
    barrier = threading.Barrier(MANY)
    counter = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"

    def wait(job_id):
        barrier.wait()
        with pytest.raises(TimeoutError, match="it is queued"):
            Job(jobs, job_id, "").wait(timeout=3)

    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        alone = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"
        wait_until(lambda: Scene(connection).one(alone), timeout=PATIENCE, what="all others to have left and been counted")
        before = Scene(connection).one(counter)
        with ThreadPoolExecutor(MANY) as threads:
            for waiting in [threads.submit(wait, job_id) for job_id in ids]:
                waiting.result(PATIENCE * 2)
            assert connections(connection) == 1
        watcher_of(jobs.dsn).close()
        wait_until(lambda: connections(connection) == 0, timeout=PATIENCE, what="the connection to be closed, and its queries counted")
        looks = Scene(connection).one(counter) - before
    print(f"{looks} transactions for {MANY} waiters")
    # One who waits alone makes 35 looks in three seconds. The threads do not all begin at once, which makes it a few times that.
    assert 12 <= looks < MANY, "a loop for each would have made 35 times as many as there are threads"


def test_waiting_from_many_threads_at_once(task, connection, dsn):
    """Jobs that end before, while and after somebody begins to wait for them are all noticed, each by the one who waits for it."""
    ids = task.enqueue_many([(number,) for number in range(300)])

    def end_all():
        with psycopg.connect(dsn, autocommit=True) as other:
            for number, job_id in enumerate(ids):
                finish(other, job_id, result=number)

    with ThreadPoolExecutor(33) as threads:
        ending = threads.submit(end_all)
        results = list(threads.map(lambda job_id: Job[Any](task._submitter, job_id, "").result(PATIENCE), ids))
        ending.result()
    assert results == list(range(300))
    assert connections(connection) == 1


def test_a_result_is_there_within_milliseconds(task, connection):
    """Whoever waits for a short job is told soon after its end: half of them within a tenth of a second on any machine, far below the longest pause."""

    def told_at(job):
        assert job.result(PATIENCE) == 1
        return time.monotonic()

    delays = []
    with ThreadPoolExecutor(1) as threads:
        for _ in range(21):
            job = task.enqueue(1)
            waiting = threads.submit(told_at, job)
            finish(connection, job.id, result=1)
            ended = time.monotonic()
            delays.append(waiting.result() - ended)
    print(f"median {sorted(delays)[10] * 1000:.1f} ms")
    assert sorted(delays)[10] < 0.1, "a quiet machine takes a millisecond"


def test_the_end_of_the_time_is_kept(task, connection, patient):
    """A timeout ends with the state as it then is, not before and not much later; `timeout=0` looks once and sees a finished job."""
    job = task.enqueue(1)

    def wait():
        with pytest.raises(TimeoutError, match=f"job {job.id} is not finished after 0.3 s: it is queued"):
            job.wait(0.3)

    shortest, usual, _ = timed(wait)
    assert 0.3 <= shortest <= usual < 0.3 + LAST_LOOK
    finish(connection, job.id, result=7)
    assert (job.wait(0), job.result(0)) == ("succeeded", 7)


def test_a_job_that_is_retried_goes_on_being_waited_for(task, connection):
    """A failure that was taken back in the same transaction is none; nobody is told of a job that is in neither table."""
    job = task.enqueue(1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(job.result, PATIENCE)
        wait_until(lambda: is_watched(connection), timeout=PATIENCE, what="somebody waits")
        for _ in range(200):
            with connection.transaction():
                finish(connection, job.id, "failed")
                connection.execute("INSERT INTO jobrunner.jobs (id, task, args) SELECT id, task, args FROM jobrunner.job_history")
                connection.execute("DELETE FROM jobrunner.job_history")
        assert not waiting.done()
        finish(connection, job.id, result=8)
        assert waiting.result() == 8


def test_moving_to_and_fro_is_never_absence(task, connection, patient):
    """While a job fails and is retried again and again, whoever looks sees one or the other, never that there is no such job."""
    job = task.enqueue(1)
    finish(connection, job.id, "failed")
    stop = threading.Event()
    seen = set()

    def look():
        handle = Job[Any](task._submitter, job.id, "")
        while not stop.is_set():
            try:
                seen.add(handle.wait(0))
            except TimeoutError:
                seen.add(handle.state)

    with ThreadPoolExecutor(4) as threads:
        looking = [threads.submit(look) for _ in range(4)]
        try:
            wait_until(lambda: seen, timeout=PATIENCE, what="somebody looks")
            for _ in range(300):
                job.retry()
                finish(connection, job.id, "failed")
        finally:
            stop.set()
        for each in looking:
            each.result()  # raises what it raised
    assert seen == {"failed", "retrying"}


def test_a_lost_connection_is_opened_again(task, connection):
    """When the server ends the connection while somebody waits or while nobody does, nobody notices."""
    for number in range(3):
        job = task.enqueue(number)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(job.result, PATIENCE)
            wait_until(lambda: is_watched(connection), timeout=PATIENCE, what="somebody waits")
            connection.execute(f"SELECT pg_terminate_backend(pid) {OURS}")
            finish(connection, job.id, result=number)
            assert waiting.result() == number
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {OURS}")


def test_an_idle_connection_is_given_up(task, connection, monkeypatch):
    """When nobody has waited for a while the connection is closed; the next one who waits opens another."""
    monkeypatch.setattr(watching, "IDLE", 0.05)
    for number in range(2):
        job = task.enqueue(number)
        finish(connection, job.id, result=number)
        assert job.result(PATIENCE) == number
        wait_until(lambda: connections(connection) == 0, timeout=PATIENCE, what="the connection to be given up")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 warns of what this test is about
def test_a_forked_child_waits_on_a_connection_of_its_own(task, connection):
    """After a fork both sides wait; neither disturbs the other."""
    jobs = [task.enqueue(number) for number in range(3)]
    finish(connection, jobs[0].id, result=0)
    assert jobs[0].result(PATIENCE) == 0
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if jobs[1].result(PATIENCE) == 1 else 2
            watcher_of(task._submitter.dsn).close()
        finally:
            os._exit(code)
    wait_until(lambda: connections(connection) == 2, timeout=PATIENCE, what="the child to wait")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(jobs[2].result, PATIENCE)
        finish(connection, jobs[1].id, result=1)
        assert os.waitpid(pid, 0)[1] == 0
        finish(connection, jobs[2].id, result=2)
        assert waiting.result() == 2


def test_an_interrupt_ends_the_wait(task, connection):
    """Ctrl-C reaches a main thread that waits for ever, and nothing is looked for afterwards."""
    job = task.enqueue(1)
    main = threading.get_ident()

    def interrupt():
        wait_until(lambda: is_watched(connection), timeout=PATIENCE, what="somebody waits")
        signal.pthread_kill(main, signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        interrupting = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            job.wait()
        interrupting.result()
    watcher = watcher_of(task._submitter.dsn)
    thread = watcher._thread
    watcher.close()
    assert thread is not None
    assert not thread.is_alive(), "it ends as soon as nobody waits"


def test_a_thread_that_waits_does_not_keep_the_interpreter(fresh_dsn, tmp_path):
    """A program whose daemon threads wait for jobs ends when its main thread does, without a word."""
    code = (
        "import sys, threading\nfrom jobrunner import JobRunner\njobs = JobRunner(dsn=sys.argv[1], wakeups=False)\n"
        "@jobs.task\ndef work(): ...\njob = work.enqueue()\n"
        "threading.Thread(target=job.wait, daemon=True).start()\n"
        "try:\n    job.wait(0.2)\nexcept TimeoutError:\n    print('left')\n"
    )
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code, fresh_dsn], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "left\n", "")


def test_a_database_without_the_schema_is_named(empty_dsn):
    """Waiting on a database that was never migrated is refused at once, for each who waits, and says what to run."""
    jobs = runner(empty_dsn)
    with ThreadPoolExecutor(3) as threads:
        for waiting in [threads.submit(Job(jobs, 1, "").wait) for _ in range(3)]:
            with pytest.raises(SchemaMissing) as caught:
                waiting.result(PATIENCE)
            assert "jobrunner db upgrade" in caught.value.hint
    jobs.close()
    watcher_of(jobs.dsn).close()


def test_a_server_that_says_nothing_holds_nobody_longer_than_asked(task, dsn):
    """While a look hangs, a timeout is kept with a second of grace, and who waits without one gives up after the patience."""
    job = task.enqueue(1)
    watcher = Watcher(parse_dsn(dsn, "test"), patience=0.5)
    with psycopg.connect(dsn) as holder:
        holder.execute("LOCK TABLE jobrunner.jobs IN ACCESS EXCLUSIVE MODE")

        def wait():
            with pytest.raises(TimeoutError, match=f"job {job.id} is not known to be finished: the database has not answered"):
                job.wait(0.2)

        assert timed(wait)[1] < 0.2 + LAST_LOOK + 1
        with pytest.raises(DatabaseUnreachable, match="no answer for"):
            watcher.wait(job.id)
    watcher.close()
    with pytest.raises(TimeoutError, match="it is queued"):
        job.wait(0)


@pytest.mark.chaos
def test_an_outage_is_waited_through(durable_server, caplog):
    """PostgreSQL stopped and started: who waits without a timeout, or with a long one, gets the result; a short timeout is kept and says
    why; who comes when all is well again is not told of it."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    jobs = runner(dsn)
    ours, for_ever = [jobs.registry.get("work").enqueue(number) for number in range(2)]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ours.result, 60), threads.submit(for_ever.result)]
        with psycopg.connect(dsn, autocommit=True) as connection:
            wait_until(lambda: is_watched(connection), timeout=PATIENCE, what="somebody waits")
        durable_server.stop(mode="immediate")

        def wait():
            with pytest.raises(TimeoutError, match="cannot reach PostgreSQL at") as caught:
                ours.wait(0.5)
            assert caught.value.__cause__ is not None

        assert timed(wait)[1] < 0.5 + LAST_LOOK + 1
        impatient = Watcher(jobs.dsn, patience=0.3)
        with pytest.raises(DatabaseUnreachable):
            impatient.wait(ours.id)
        impatient.close()
        durable_server.start()
        with psycopg.connect(dsn, autocommit=True) as connection:
            for number, job in enumerate((ours, for_ever)):
                finish(connection, job.id, result=number)
        assert [future.result(PATIENCE) for future in waiting] == [0, 1]
    assert (ours.wait(0), for_ever.wait(0)) == ("succeeded", "succeeded")
    told = [record.message for record in caplog.records if record.name == "jobrunner.waiters"]
    assert sum("go on waiting" in line for line in told) == 2, "once for each watcher, however long it lasts"
    jobs.close()
    watcher_of(jobs.dsn).close()


def test_what_nobody_thought_of_reaches_all_who_wait(task, connection, monkeypatch):
    """An error in the thread itself is raised by everybody who waits; the next one who waits starts anew."""
    job = task.enqueue(1)

    def broken(*_):
        raise ZeroDivisionError

    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    with monkeypatch.context() as patch:
        patch.setattr(watching.Rounds, "_look", broken)
        with pytest.raises(ZeroDivisionError):
            job.wait()
    thread = watcher_of(task._submitter.dsn)._thread
    assert thread is not None
    wait_until(lambda: seen and not thread.is_alive(), timeout=PATIENCE, what="the thread to end")
    finish(connection, job.id, result=3)
    assert job.result(PATIENCE) == 3
    with pytest.raises(JobNotFound):
        Job[Any](task._submitter, 2**62, "").wait()
