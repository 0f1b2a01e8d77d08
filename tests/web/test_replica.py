"""Pages and reading commands on a real streaming replica: what they show, how far it is behind, what happens when it is away."""

from __future__ import annotations

import contextlib
import re
import time

import psycopg
import pytest

from jobrunner import JobRunner, replicas
from jobrunner.errors import ConfigurationError
from jobrunner.settings import Dsn, find_read_dsn
from jobrunner.web import create_app
from tests.support import doctoring, hosts
from tests.support.cli import Program
from tests.support.waiting import wait_until
from tests.support.workers import insert, rows

SHORT = 0.05  # seconds: the tests do not wait for what is about comfort


@pytest.fixture(scope="module")
def primary():
    """A cluster of its own."""
    with doctoring.cluster() as own:
        yield own


@pytest.fixture
def replica(primary):
    """Its streaming replica, connected; both without jobs."""
    for table in ("jobs", "job_history"):
        rows(primary.dsn(), f"DELETE FROM jobrunner.{table} RETURNING 1")
    with doctoring.standby(primary) as own:
        wait_until(lambda: rows(own.dsn(), "SELECT status FROM pg_stat_wal_receiver"), timeout=30, what="the standby to be connected")
        yield own
        with contextlib.suppress(psycopg.OperationalError):  # a test may have stopped it
            rows(own.dsn(), "SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END")


@pytest.fixture
def client(primary, replica, monkeypatch):
    """A dashboard that reads from the replica, asked as admin."""
    for name in ("LOOK", "AWAY", "AFTER_WRITE"):
        monkeypatch.setattr(replicas, name, SHORT)
    jobs = JobRunner(dsn=primary.dsn(), wakeups=False)
    app = create_app(jobs, auth=lambda _request: "admin", read_dsn=replica.dsn())
    made = app.test_client()
    made.environ_base |= {"HTTP_SEC_FETCH_SITE": "same-origin"}
    yield made
    app.extensions["jobrunner-web"].reads.close()
    jobs.close()


def page(client, path="/jobs"):
    """The text of a page, which must answer."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())


def pause(replica):
    """Stop the replay; it is only a wish until the server says so."""
    rows(replica.dsn(), "SELECT pg_wal_replay_pause()")
    wait_until(lambda: rows(replica.dsn(), "SELECT pg_get_wal_replay_pause_state()") == [("paused",)], timeout=30, what="the pause")


def test_pages_read_from_the_replica_and_changes_go_to_the_primary(client, primary, replica, monkeypatch):
    """A page shows the state of the replica and how far that is behind; a change is the primary's, and is seen at once by who made it."""
    insert(primary.dsn(), "before", 1, "'{}'")
    wait_until(lambda: "before" in page(client), timeout=30, what="the job to be replayed")
    shown = page(client)
    assert "(the replica is 0 s behind)" in shown
    assert "read-only" not in shown
    pause(replica)
    insert(primary.dsn(), "behind", 1, "'{}'")
    assert "behind" not in page(client).replace("s behind", "")
    [(job_id,)] = rows(primary.dsn(), "SELECT id FROM jobrunner.jobs WHERE task = 'behind'")
    assert client.get(f"/jobs/{job_id}").status_code == 404
    wait_until(lambda: re.search(r"\(the replica is [1-9]\d* s behind\)", page(client)), timeout=30, what="the replica to be behind")
    monkeypatch.setattr(replicas, "FAR_BEHIND", 0.5)
    assert "The replica is" in page(client), "a banner when it is far behind"
    monkeypatch.setattr(replicas, "AFTER_WRITE", 60.0)
    answer = client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json["state"]) == (200, "cancelled")
    assert rows(primary.dsn(), f"SELECT state FROM jobrunner.v_jobs WHERE id = {job_id}") == [("cancelled",)]
    monkeypatch.setattr(replicas, "AFTER_WRITE", SHORT)
    wait_until(lambda: client.get(f"/jobs/{job_id}").status_code == 404, timeout=30, what="the replica to be read again")


def test_without_the_replica_the_primary_is_read(client, primary, replica):
    """A replica that is stopped is named in a banner while pages come from the primary, and is read again when it is back."""
    insert(primary.dsn(), "here", 1, "'{}'")
    wait_until(lambda: "here" in page(client), timeout=30, what="the job to be replayed")
    replica.stop()
    wait_until(lambda: "reading from the primary" in page(client), timeout=30, what="the fall-back")
    shown = page(client)
    assert "does not answer" in shown
    assert "here" in shown
    assert client.get("/readyz").status_code == 200
    replica.start()
    wait_until(lambda: "s behind)" in page(client), timeout=30, what="the replica to be read again")


def test_the_replica_dies_between_a_look_and_a_read(client, primary, replica, monkeypatch):
    """Nobody loses a page to a replica that an earlier page found well: each read goes to the primary at once, and so does the probe."""
    insert(primary.dsn(), "kept", 1, "'{}'")
    wait_until(lambda: "kept" in page(client), timeout=30, what="the job to be replayed")
    monkeypatch.setattr(replicas, "LOOK", 600.0)
    monkeypatch.setattr(replicas, "AWAY", 600.0)
    [(job_id,)] = rows(primary.dsn(), "SELECT id FROM jobrunner.jobs")
    for path in ("/jobs", f"/jobs/{job_id}", "/readyz"):
        assert "s behind)" in page(client), "the replica is read, and no page looks again"
        replica.stop()
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        assert "reading from the primary" in page(client)
        replica.start()
        monkeypatch.setattr(replicas, "AWAY", 0.0)
        wait_until(lambda: "s behind)" in page(client), timeout=30, what="the replica to be read again")
        monkeypatch.setattr(replicas, "AWAY", 600.0)


def test_a_replica_that_stands_still(primary, replica, monkeypatch):
    """A replica that takes questions and answers none is given up after a moment, and the page comes from the primary."""
    monkeypatch.setattr(replicas, "AWAY", SHORT)
    monkeypatch.setattr(replicas, "LOOK", 0.0)  # a read that was begun on the word of an earlier look has no such limit
    insert(primary.dsn(), "still", 1, "'{}'")
    with hosts.behind_proxy(replica.dsn(), 0) as host:
        jobs = JobRunner(dsn=primary.dsn(), wakeups=False)
        app = create_app(jobs, auth=lambda _request: "admin", read_dsn=host.dsn)
        client = app.test_client()
        wait_until(lambda: "still" in page(client) and "s behind)" in page(client), timeout=30, what="the job to be replayed")
        host.cut()
        began = time.monotonic()
        shown = page(client)
        assert time.monotonic() - began < 3 * replicas.PATIENCE
        assert "reading from the primary" in shown
        assert "still" in shown
        host.mend()
        wait_until(lambda: "s behind)" in page(client), timeout=30, what="the replica to be read again")
        app.extensions["jobrunner-web"].reads.close()
        jobs.close()


def test_the_primary_away_leaves_pages_to_look_at(client, primary, replica):
    """While the primary is stopped the pages show what the replica has, how old that is, and a change says what is wrong."""
    insert(primary.dsn(), "last", 1, "'{}'")
    wait_until(lambda: "last" in page(client), timeout=30, what="the job to be replayed")
    [(job_id,)] = rows(primary.dsn(), "SELECT id FROM jobrunner.jobs")
    primary.stop()
    try:
        wait_until(lambda: re.search(r"the replica is [1-9]\d* s behind", page(client)), timeout=30, what="the age to be shown")
        assert "last" in page(client)
        answer = client.post(f"/api/v1/jobs/{job_id}/cancel")
        assert answer.status_code == 503
    finally:
        primary.start()


def test_a_promoted_replica_is_not_read(client, primary, replica):
    """What is no replica any more would show an old state for ever: the primary is read, and the setting is named."""
    insert(primary.dsn(), "after", 1, "'{}'")
    rows(replica.dsn(), "SELECT pg_promote()")
    wait_until(lambda: "is a primary: reading from the primary" in page(client), timeout=30, what="the fall-back")
    assert "names no replica" in page(client)
    assert "after" in page(client)


def test_commands_read_from_the_replica(primary, replica, tmp_path):
    """Reading commands say on stderr how far the replica is behind; `--dsn` reads what it names; without the replica they warn."""
    insert(primary.dsn(), "listed", 1, "'{}'")
    wait_until(lambda: rows(replica.dsn(), "SELECT task FROM jobrunner.jobs") == [("listed",)], timeout=30, what="the replay")
    program, env = Program(tmp_path, primary.dsn()), {"JOBRUNNER_READ_DSN": replica.dsn()}
    pause(replica)
    rows(primary.dsn(), "DELETE FROM jobrunner.jobs RETURNING 1")
    said = program("jobs", "list", "--json", env=env)
    assert [job["task"] for job in said.json["items"]] == ["listed"]
    assert re.search(r"the replica is \d+ s behind", said.err)
    assert program("jobs", "list", "--json", "--dsn", primary.dsn(), env=env).json["items"] == []
    status = program("status", "--json", env=env).json
    assert "read_only" not in {problem["code"] for problem in status["problems"]}
    rows(replica.dsn(), "SELECT pg_wal_replay_resume()")
    replica.stop()
    said = program("workers", "list", "--json", env=env)
    assert "does not answer" in said.err
    assert "reading from the primary" in said.err


def test_where_the_replica_comes_from():
    """The environment, then the Flask config, but not beside a database that the environment names; nonsense is refused by name."""
    config = {"JOBRUNNER_READ_DSN": "postgresql://replica/shop"}
    assert find_read_dsn(config, {}) == Dsn("postgresql://replica/shop", "JOBRUNNER_READ_DSN of the Flask config")
    other = "postgresql://other/shop"
    assert find_read_dsn(config, {"JOBRUNNER_READ_DSN": other}) == Dsn(other, "JOBRUNNER_READ_DSN")
    assert find_read_dsn(config, {"JOBRUNNER_DSN": "postgresql://staging/shop"}) is None
    assert find_read_dsn({}, {}) is None
    with pytest.raises(ConfigurationError, match="JOBRUNNER_READ_DSN of the Flask config"):
        find_read_dsn({"JOBRUNNER_READ_DSN": "mysql://replica/shop"}, {})
