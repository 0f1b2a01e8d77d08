"""The JSON API: jobs in, jobs out, and every error as problem+json from the one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobrunner import JobRunner
from jobrunner.web import create_app
from tests.support.revisions import at_version, ours
from tests.support.seed import seed
from webapp import problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

URL = "/api/v1/jobs"


@pytest.fixture
def without_tasks(dsn) -> Iterator[FlaskClient]:
    """The API of a process that knows only the database."""
    app = create_app(dsn=dsn, auth=lambda _request: "admin")
    app.extensions["jobrunner-web"].jobs.wakeups = False
    yield app.test_client()
    app.extensions["jobrunner-web"].reads.close()
    app.extensions["jobrunner-web"].jobs.close()


def problem(response, status, slug) -> Any:
    """The problem in a response, which must be exactly this one, and harmless."""
    assert response.status_code == status, response.text
    assert response.mimetype == "application/problem+json"
    assert response.json["type"] == f"urn:jobrunner:problem:{slug}"
    assert response.json["status"] == status
    assert "Traceback" not in response.text
    return response.json


def test_a_job_goes_in_and_comes_out(client, connection) -> None:
    """POST writes one row as enqueue does; GET of its Location gives it back with arguments, policy and the reason it waits."""
    made = client.post(URL, json={"task": "send_welcome", "args": {"user_id": 42}, "options": {"priority": -5, "tags": ["vip"]}})
    assert made.status_code == 201
    assert made.json == {"id": made.json["id"], "created": True, "state": "queued"}
    found = client.get(made.headers["Location"]).json
    assert (found["task"], found["args"], found["queue"], found["priority"], found["max_attempts"]) == (
        "send_welcome",
        {"user_id": 42},
        "mail",
        -5,
        3,
    )
    assert (found["tags"], found["state"], found["attempts"]) == (["vip"], "queued", [])
    assert found["waiting_reason"]["code"] == "no_worker"
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (1,)


def test_options_are_those_of_the_library(client, connection) -> None:
    """Delay, run_at, unique and limits reach the row; a unique job that is there already is given with 200."""
    options = {
        "queue": "slow",
        "delay": "1h",
        "unique": "once",
        "max_attempts": 9,
        "time_limit": 30,
        "backoff": "constant",
        "meta": {"by": "api"},
    }
    first = client.post(URL, json={"task": "anything", "args": {"self": 1, "n": 9007199254740993}, "options": options})
    second = client.post(URL, json={"task": "anything", "options": options})
    assert (first.status_code, first.json["state"], second.status_code) == (201, "scheduled", 200)
    assert second.json == {"id": first.json["id"], "created": False, "state": "queued"}
    row = connection.execute(
        "SELECT queue, unique_key, max_attempts, time_limit, backoff, args::text, run_at > now() + interval '59 min' FROM jobrunner.jobs"
    ).fetchone()
    assert (row[0], row[1], row[2], row[3].total_seconds(), row[4], row[6]) == ("slow", "once", 9, 30, "constant", True)
    assert json.loads(row[5]) == {"self": 1, "n": 9007199254740993}
    later = client.post(URL, json={"task": "anything", "options": {"run_at": "2040-01-31T09:00:00Z"}})
    assert client.get(later.headers["Location"]).json["run_at"] == "2040-01-31T09:00:00Z"


@pytest.mark.parametrize(
    ("body", "status", "slug", "part"),
    [
        ({"task": "send_welcom", "args": {}}, 422, "unknown-task", "send_welcome"),
        ({"task": "send_welcome"}, 422, "invalid-arguments", "user_id"),
        ({"task": "send_welcome", "args": {"user_id": 1, "x": 2}}, 422, "invalid-arguments", "x"),
        ({"task": "send_welcome", "args": {"user_id": "one"}}, 422, "invalid-arguments", "user_id"),
        ({"task": "anything", "args": {"a": "nul \x00"}}, 422, "invalid-arguments", "NUL"),
        ({"task": "anything", "args": {"a": "\ud800"}}, 422, "invalid-arguments", "surrogate"),
        ({"task": "send_welcome", "args": [42]}, 422, "invalid-field", "args must be an object"),
        ({"task": 7}, 422, "invalid-field", "task must be text"),
        ({}, 422, "invalid-field", "task must be text"),
        ({"task": "anything", "arg": {}}, 422, "invalid-field", "did you mean args?"),
        ({"task": "anything", "options": {"prio": 1}}, 422, "invalid-field", "did you mean priority?"),
        ({"task": "anything", "options": {"session": 1}}, 422, "invalid-field", "options.session"),
        ({"task": "anything", "options": {"priority": 99999}}, 422, "invalid-field", "32,767"),
        ({"task": "anything", "options": {"delay": "soon"}}, 422, "invalid-field", "delay"),
        ({"task": "anything", "options": {"delay": -1}}, 422, "invalid-field", "delay"),
        ({"task": "anything", "options": {"run_at": "2030-01-01T00:00:00"}}, 422, "invalid-field", "zone"),
        ({"task": "anything", "options": {"run_at": 5}}, 422, "invalid-field", "zone"),
        ({"task": "anything", "options": {"delay": 1, "run_at": "2030-01-01T00:00:00Z"}}, 422, "invalid-field", "one of the two"),
        ({"task": "anything", "options": {"unique": ""}}, 422, "invalid-field", "unique"),
        ({"task": "anything", "options": {"meta": "x"}}, 422, "invalid-field", "meta"),
        ([1], 400, "malformed-body", "one JSON object"),
    ],
)
def test_a_wrong_body_is_refused_in_words(client, connection, body, status, slug, part) -> None:
    """What cannot be enqueued is refused before anything is written, and the answer names the field and the way out."""
    found = problem(client.post(URL, json=body), status, slug)
    assert part in found["detail"] + found.get("hint", "")
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)


@pytest.mark.parametrize(
    ("data", "slug"),
    [(b"{", "malformed-body"), (b"", "malformed-body"), (b"\xff{}", "malformed-body"), (b'{"task": NaN}', "malformed-body"),
     (b'{"task": "a", "task": "b"}', "malformed-body"), (b"[" * 100_000, "malformed-body"), (b'{"task": ' + b"9" * 5000 + b"}", "malformed-body")],
)  # fmt: skip
def test_what_is_not_json_is_a_bad_request(client, data, slug) -> None:
    """Broken, ambiguous or bottomless JSON is 400, never an internal error."""
    problem(client.post(URL, data=data, content_type="application/json"), 400, slug)


def test_bodies_are_json_and_bounded(client) -> None:
    """Another media type is 415; more than a megabyte is 413, whether the length was announced or not."""
    problem(client.post(URL, data="task=x"), 415, "not-json")
    large = json.dumps({"task": "anything", "args": {"a": "x" * 1_100_000}})
    problem(client.post(URL, data=large, content_type="application/json"), 413, "body-too-large")
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    problem(client.post(URL, data=large, content_type="application/json", environ_overrides=chunked), 413, "body-too-large")


def test_the_list_is_paged_and_filtered(client, connection) -> None:
    """Following `next` gives each job once; the filter text and the bare parameters mean the same; the count is capped."""
    seed(connection, 600)
    seen, url, page = [], f"{URL}?limit=100", {}
    while url:
        page = client.get(url).json
        seen += [item["id"] for item in page["items"]]
        url = page["next"] and f"{URL}?limit=100&cursor={page['next']}"
    assert len(seen) == len(set(seen)) == page["count"]["value"]
    assert page["count"]["exact"] is True
    one, two = client.get(f"{URL}?filter=state:failed task:s*").json, client.get(f"{URL}?state=failed&task=s*").json
    assert one["items"] == two["items"]
    assert {item["state"] for item in one["items"]} == {"failed"}
    assert all(item["task"].startswith("s") for item in one["items"])


@pytest.mark.parametrize(
    ("query", "status", "slug"),
    [
        ("filter=sate:x", 400, "invalid-filter"),
        ("filter=state:failed&state=failed", 400, "invalid-filter"),
        ("cursor=xyz", 400, "invalid-cursor"),
        ("limit=0", 422, "invalid-field"),
        ("limit=201", 422, "invalid-field"),
        ("limit=ten", 422, "invalid-field"),
        ("limit=%D9%A1", 422, "invalid-field"),
        ("offset=100", 422, "invalid-field"),
    ],
)
def test_a_wrong_question_is_refused(client, query, status, slug) -> None:
    """A filter, cursor or limit that cannot be read is told, not ignored."""
    problem(client.get(f"{URL}?{query}"), status, slug)


@pytest.mark.parametrize("job_id", ["0", "1", "9223372036854775807", "9223372036854775808", "9" * 400, "abc", "-1", "1.5", "٣"])
def test_an_unknown_job_is_not_found(client, job_id) -> None:
    """Any id that is none is 404 for every verb, however long it is."""
    problem(client.get(f"{URL}/{job_id}"), 404, "job-not-found")
    problem(client.post(f"{URL}/{job_id}/retry"), 404, "job-not-found")
    problem(client.post(f"{URL}/{job_id}/cancel"), 404, "job-not-found")


def test_retry_and_cancel_follow_the_state_machine(client, connection) -> None:
    """Each verb works from the states that allow it, and is 409 with a hint from the others."""
    ids = seed(connection, 600)
    assert client.post(f"{URL}/{ids['failed']}/retry").json["state"] == "retrying"
    assert client.post(f"{URL}/{ids['scheduled']}/retry").json["state"] == "queued"
    assert client.post(f"{URL}/{ids['queued']}/cancel").json["state"] == "cancelled"
    stopping = client.post(f"{URL}/{ids['running']}/cancel")
    assert (stopping.status_code, stopping.json["waiting_reason"]["code"]) == (202, "cancelling")
    for verb, state in (("retry", "succeeded"), ("retry", "running"), ("cancel", "succeeded"), ("cancel", "quarantined")):
        found = problem(client.post(f"{URL}/{ids[state]}/{verb}"), 409, "illegal-transition")
        assert found["hint"]


def test_a_retry_that_meets_its_unique_key_is_a_conflict(client, connection) -> None:
    """A job cannot come back while a live job holds its key: 409, naming that job."""
    first = client.post(URL, json={"task": "anything", "options": {"unique": "k"}}).json["id"]
    client.post(f"{URL}/{first}/cancel")
    second = client.post(URL, json={"task": "anything", "options": {"unique": "k"}}).json["id"]
    assert str(second) in problem(client.post(f"{URL}/{first}/retry"), 409, "duplicate-job")["detail"]


def test_numbers_keep_their_digits(client, connection) -> None:
    """A 64-bit id in the arguments is the same number in the answer's text; what JSON readers cannot hold is text."""
    connection.execute(
        """INSERT INTO jobrunner.jobs (id, task, args) VALUES (7, 't', '{"big": 9007199254740993, "huge": 1e400, "far": 1.5e-400}')"""
    )
    answer = client.get(f"{URL}/7")
    assert '"big": 9007199254740993' in answer.text
    assert isinstance(json.loads(answer.text, parse_constant=pytest.fail)["args"]["huge"], int)


def test_without_tasks_only_those_of_live_workers_are_taken(without_tasks, connection) -> None:
    """A process that knows no task accepts what a live worker registers, arguments as they are, and refuses the rest in words."""
    found = problem(without_tasks.post(URL, json={"task": "send_welcome"}), 422, "unknown-task")
    assert "no worker is alive" in found["hint"]
    seed(connection, 10)
    made = without_tasks.post(URL, json={"task": "send_welcome", "args": {"self": 1, "task": 2}, "options": {"queue": "mail"}})
    assert made.status_code == 201
    assert without_tasks.get(made.headers["Location"]).json["args"] == {"self": 1, "task": 2}
    found = problem(without_tasks.post(URL, json={"task": "send_welcom"}), 422, "unknown-task")
    assert "send_welcome" in found["detail"]
    problem(without_tasks.post(URL, json={"task": "send_welcome", "args": {"a": "\x00"}}), 422, "invalid-arguments")


def test_an_enqueue_is_committed_whatever_session_the_app_has(jobs, app, client, connection) -> None:
    """The API writes in a transaction of its own, also when the app enqueues in its SQLAlchemy session."""
    jobs.session = lambda: pytest.fail("the app's session was used")
    assert client.post(URL, json={"task": "send_welcome", "args": {"user_id": 1}}).status_code == 201
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (1,)


def test_the_probes_tell_up_from_ready(client, app, connection) -> None:
    """healthz asks nobody; readyz follows the schema, and says why only to who may read."""
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").json == {"status": "ok", "schema": ours()[-1]}
    assert app.test_client().get("/readyz").json == {"status": "ok"}
    with at_version(connection, "9999"):
        assert "9999" in problem(client.get("/readyz"), 503, "schema-mismatch")["detail"]
        assert problem(app.test_client().get("/readyz"), 503, "schema-mismatch")["detail"] == "not ready"


def test_a_dead_database_is_503_without_a_secret() -> None:
    """Every route says that the database does not answer; no answer holds the password."""
    jobs = JobRunner(dsn="postgresql://ana:s3cret@127.0.0.1:1/shop")
    jobs.task(_nothing)
    app = create_app(jobs, auth=lambda _request: "admin")
    client = app.test_client()
    assert client.get("/healthz").status_code == 200
    for method, url in (("GET", URL), ("GET", f"{URL}/1"), ("POST", f"{URL}/1/retry"), ("POST", URL), ("GET", "/readyz")):
        answer = client.open(url, method=method, json={"task": "_nothing"} if method == "POST" else None)
        found = problem(answer, 503, "database-unreachable")
        assert "s3cret" not in answer.text
        assert "ana@127.0.0.1:1/shop" in found["detail"]
    page = client.get("/jobs")
    assert page.status_code == 503
    assert "cannot reach PostgreSQL" in page.text.replace("Cannot", "cannot")
    assert "s3cret" not in page.text
    app.extensions["jobrunner-web"].reads.close()
    jobs.close()


def _nothing() -> None:
    """A task without arguments."""


def test_a_missing_schema_is_503(empty_dsn) -> None:
    """Before `db upgrade` the API says what to run."""
    app = create_app(dsn=empty_dsn, auth=lambda _request: "admin")
    assert "jobrunner db upgrade" in problem(app.test_client().get(URL), 503, "schema-mismatch")["hint"]
    assert "jobrunner db upgrade" in problem(app.test_client().get("/readyz"), 503, "schema-mismatch")["hint"]
    app.extensions["jobrunner-web"].reads.close()
    app.extensions["jobrunner-web"].jobs.close()


def test_an_unforeseen_error_tells_nothing(app, client, monkeypatch, caplog) -> None:
    """A bug in a view is 500 with a fixed sentence; the traceback is in the log only, also in debug mode."""
    app.debug = True
    monkeypatch.setattr("jobrunner.webapp.api.list_jobs", lambda *_args, **_options: 1 / 0)
    found = problem(client.get(URL), 500, "internal")
    assert "division" not in json.dumps(found)
    assert "ZeroDivisionError" in caplog.text


def test_unknown_routes_and_methods_are_problems_too(client) -> None:
    """404 and 405 of the API are problem+json, with the methods that there are."""
    problem(client.get("/api/v1/nothing"), 404, "http-404")
    answer = client.delete(f"{URL}/1")
    problem(answer, 405, "http-405")
    assert "GET" in answer.headers["Allow"]


def test_the_reference_lists_every_problem() -> None:
    """The table in the reference has exactly the rows of the code."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text()
    rows = {tuple(cell.strip(" `") for cell in line.strip("|").split("|")[:2]) for line in text.splitlines() if line.startswith("| `")}
    assert {(slug, str(status)) for _, status, slug, _ in problems.TABLE} <= rows
