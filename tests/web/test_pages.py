"""The pages: right facts, valid HTML, harmless whatever the rows say, the same under any prefix."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
from flask import Flask
from psycopg.types.json import Jsonb
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from jobrunner.web import create_app, mount
from tests.support.htmlcheck import Page
from tests.support.revisions import at_version
from tests.support.seed import seed

WEBAPP = Path(__file__).parents[2] / "webapp"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</title></pre></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}${7*7}",
    "\u202e\u2028\u0085\t line\nbreak",
    "&lt;b&gt; &amp; &#x3c;",
    "ünïcödé 🎉 " + "x" * 3_000,
)  # fmt: skip


def clean(answer, status=200) -> Page:
    """The page of an answer, which must be well-formed and hold nothing forbidden."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.mimetype == "text/html"
    page = Page(answer.text)
    assert page.problems == []
    return page


def readable(page) -> str:
    """What a person reads, in one line."""
    return " ".join("".join(page.text).split())


def test_the_list_shows_jobs_with_their_facts(client, connection) -> None:
    """A row has id, task, queue, state in words, tries, times and an excerpt; tabs have counts; the pager leads on and back."""
    seed(connection, 600)
    page = clean(client.get("/jobs?filter=state:failed"))
    text = readable(page)
    count = connection.execute("SELECT count(*) FROM jobrunner.job_history WHERE state = 'failed'").fetchone()[0]
    assert f"failed {count}" in text
    assert "shop.http.UpstreamTimeout: no answer from api.mail.example in 30 s" in text
    assert "3/3" in text
    first = clean(client.get("/jobs"))
    older = next(link for link in first.links if "cursor=" in link)
    second = clean(client.get(older))
    assert any("cursor=" in link for link in second.links)
    assert not {link for link in first.links if re.search(r"/jobs/\d", link)} & {
        link for link in second.links if re.search(r"/jobs/\d", link)
    }


def test_every_job_of_the_seed_has_a_page(client, connection) -> None:
    """The detail of a job in any state shows arguments, result, attempts and timeline."""
    ids = seed(connection, 600)
    for kind, job_id in ids.items():
        page = clean(client.get(f"/jobs/{job_id}"))
        assert f"#{job_id}" in readable(page), kind
    text = readable(clean(client.get(f"/jobs/{ids['failed']}")))
    assert "attempt 3 failed after 1 s: shop.http.UpstreamTimeout" in text
    assert "2 library frames" in text
    assert 'File "/srv/shop/shop/mail.py", line 88, in send_welcome' in text
    assert "Why isn't it running? No live worker on queue 'default' registers task 'export.gdpr'" in readable(
        clean(client.get(f"/jobs/{ids['unserved']}"))
    )


@pytest.mark.parametrize(
    ("kind", "retry", "cancel"),
    [("failed", True, False), ("succeeded", False, False), ("cancelled", True, False), ("queued", False, True), ("scheduled", True, True),
     ("retrying", True, True), ("running", False, True), ("quarantined", True, False)],
)  # fmt: skip
def test_buttons_are_there_when_they_would_work(client, connection, kind, retry, cancel) -> None:
    """A form exists exactly for what the state allows; otherwise the button is disabled and says why."""
    ids = seed(connection, 600)
    page = clean(client.get(f"/jobs/{ids[kind]}"))
    assert (f"/jobs/{ids[kind]}/retry" in page.links, f"/jobs/{ids[kind]}/cancel" in page.links) == (retry, cancel)
    for verb, works in (("cancel", cancel), ("retry", retry)):
        answer = client.post(f"/jobs/{ids[kind]}/{verb}")
        # Making a job due that is due already changes nothing and is no error.
        assert answer.status_code == (303 if works or (kind, verb) == ("queued", "retry") else 409), answer.text


def test_buttons_do_what_they_say_and_lead_back(client, connection) -> None:
    """Retry and cancel redirect to the job, which says what happened; a second try explains why not."""
    ids = seed(connection, 600)
    answer = client.post(f"/jobs/{ids['failed']}/retry")
    assert answer.status_code == 303
    assert "The job is due" in readable(clean(client.get(answer.headers["Location"])))
    assert "The worker was asked to stop" in readable(clean(client.get(client.post(f"/jobs/{ids['running']}/cancel").headers["Location"])))
    assert "The job is cancelled" in readable(clean(client.get(client.post(f"/jobs/{ids['queued']}/cancel").headers["Location"])))
    again = clean(client.post(f"/jobs/{ids['queued']}/cancel"), 409)
    assert "Cannot cancel job" in readable(again)
    assert f"/jobs/{ids['queued']}" in again.links


def test_a_reader_sees_no_buttons(app, connection) -> None:
    """What the role forbids is absent."""
    ids = seed(connection, 600)
    page = clean(app.test_client().get(f"/jobs/{ids['failed']}", headers={"X-Test-Role": "read"}))
    assert not any(link.endswith(("/retry", "/cancel")) for link in page.links)
    assert "read-only" in readable(page)


def test_empty_pages_say_what_to_do(client) -> None:
    """With nothing there, each page says how the first thing comes about."""
    assert "No job yet." in readable(clean(client.get("/jobs")))
    assert "No job matches." in readable(clean(client.get("/jobs?filter=state:failed")))
    assert "No queue yet." in readable(clean(client.get("/queues")))
    assert "No topic yet." in readable(clean(client.get("/topics")))
    assert "No dead letter." in readable(clean(client.get("/dead-letters")))
    assert "No dead letter in this queue." in readable(clean(client.get("/dead-letters?queue=emails")))
    assert "jobrunner work --drain" in readable(clean(client.get("/workers")))
    assert "No worker is alive." in readable(clean(client.get("/jobs")))
    assert client.get("/").headers["Location"] == "/jobs"


def test_a_wrong_filter_keeps_what_was_typed(client) -> None:
    """The message stands beside the box, which still holds the text."""
    page = clean(client.get("/jobs?filter=sate%3Afailed+<b>"), 400)
    assert "Did you mean 'state'?" in readable(page)
    assert 'value="sate:failed &lt;b&gt;"' in client.get("/jobs?filter=sate%3Afailed+<b>").text


@pytest.mark.parametrize(
    ("url", "status"), [("/jobs/999999", 404), ("/jobs/abc", 404), ("/nothing", 404), ("/jobs?cursor=x", 400), ("/dead-letters?cursor=x", 422), ("/static/nothing.css", 404)]
)
def test_errors_are_pages(client, url, status) -> None:
    """What goes wrong is told in the frame, in words."""
    clean(client.get(url), status)


def test_banners_tell_the_worst_first(client, connection) -> None:
    """One banner at most: a schema that does not fit before dead workers, and none when all is well."""
    seed(connection, 20)
    assert "1 worker was lost within the last hour." in readable(clean(client.get("/queues")))
    connection.execute("DELETE FROM jobrunner.workers WHERE last_exit = 'lost'")
    assert 'class="banner"' not in client.get("/queues").text
    connection.execute("UPDATE jobrunner.workers SET lease_expires_at = now() - interval '1 s'")
    with at_version(connection, "9999"):
        text = client.get("/queues").text
        assert text.count('class="banner"') == 1
        assert "newer than this program knows" in text


def test_the_environment_is_on_every_page(jobs, connection) -> None:
    """The badge is in the frame, the title and the icon, so that nobody cancels in production by mistake."""
    app = create_app(jobs, auth=lambda _request: "admin", env_name="production")
    text = app.test_client().get("/jobs").text
    assert '<span class="badge env-red">production</span>' in text
    assert "· production · jobrunner</title>" in text
    app.extensions["jobrunner-web"].reads.close()


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_of_a_row_becomes_markup(client, connection, payload) -> None:
    """Whatever stands in any text column is text on every page: no tag, no attribute, no link leads away."""
    now = connection.execute("SELECT now()").fetchone()[0]
    worker = connection.execute(
        "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, stopped_at, last_exit) "
        "VALUES (%(x)s, %(x)s || '!', 1, 'test', %(x)s, ARRAY[%(x)s], ARRAY[%(x)s], 1, now(), now(), %(x)s) RETURNING id",
        {"x": payload},
    ).fetchone()[0]
    live = (
        "INSERT INTO jobrunner.jobs (task, queue, args, tags, meta, unique_key, last_error_type, last_error, attempt, run_at) VALUES "
        "(%(x)s, %(x)s, %(json)s, ARRAY[%(x)s], %(json)s, %(x)s, %(x)s, %(x)s, 1, %(at)s) RETURNING id"
    )
    values = {"x": payload, "json": Jsonb({payload: [payload]}), "at": now, "worker": worker}
    try:
        job_id = connection.execute(live, values).fetchone()[0]
    except Exception as error:  # noqa: BLE001  an index key of PostgreSQL has a limit; everything else must fit
        assert "index row" in str(error)
        values["x"] = payload = payload[:400]
        job_id = connection.execute(live, values).fetchone()[0]
    connection.execute(
        "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, worker_id, task, queue, started_at, outcome, error_type, message, traceback, "
        "fingerprint, exit_cause, run_ms) VALUES (%(id)s, 1, 1, %(worker)s, %(x)s, %(x)s, now() - interval '1 s', 'failed', %(x)s, %(x)s, %(x)s, "
        "%(x)s, %(x)s, 1000)",
        values | {"id": job_id},
    )
    connection.execute(
        "INSERT INTO jobrunner.job_history (id, task, queue, args, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, "
        "backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, result, worker_id) VALUES (9999, %(x)s, %(x)s, %(json)s, 0, "
        "ARRAY[%(x)s], now(), now(), 'succeeded', 1, 1, 1, %(x)s, '0', '0', 0, 0, 1, %(json)s, %(worker)s)",
        values,
    )
    dead = (
        "INSERT INTO jobrunner.job_history (id, task, queue, args, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, "
        "backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, last_error, ordering_key) VALUES (9998, 'jobrunner.message', %(x)s, %(json)s, "
        "0, '{}', now(), now(), 'failed', 1, 1, 1, 'constant', '0', '0', 0, 0, 1, %(x)s, left(%(x)s, 400))"
    )
    connection.execute(dead, values)
    connection.execute(
        "INSERT INTO jobrunner.subscriptions (topic, group_name, mode, task, patterns, queue, app) "
        "VALUES (%(x)s, %(x)s, 'log', %(x)s, ARRAY[%(x)s], %(x)s, %(x)s)",
        values,
    )
    connection.execute(
        "INSERT INTO jobrunner.cursors (topic, group_name, position, stopped_at, problem) VALUES (%(x)s, %(x)s, 0, now(), %(x)s)", values
    )
    letters = f"/dead-letters?{urlencode({'queue': payload})}"
    for url in ("/jobs", f"/jobs/{job_id}", "/jobs/9999", "/queues", "/workers", "/topics", "/dead-letters", letters):
        page = clean(client.get(url))
        assert " ".join(payload.split())[:30] in readable(page), url
    listing = clean(client.get("/jobs"))
    for link in listing.links:
        if "filter=" in link and "state" not in link:
            assert client.get(link).status_code == 200
    for name in ("filter", "cursor", "done", "v"):
        answer = client.get("/jobs", query_string={name: payload})
        clean(answer, answer.status_code)
    assert client.get("/api/v1/jobs").mimetype == "application/json"


def test_templates_never_unescape() -> None:
    """No template or view turns escaping off, and no file has inline style or script."""
    for path in [*WEBAPP.glob("templates/*.html"), *WEBAPP.glob("*.py")]:
        text = path.read_text()
        assert not re.search(r"\|\s*safe\b|Markup\(|autoescape (false|off)|autoescape=False|<script|\sstyle=|\son[a-z]+=\"", text), (
            path.name
        )


def test_a_host_application_cannot_change_the_pages(jobs, connection, tmp_path) -> None:
    """Under a prefix in a user's app with its own base.html and no escaping, pages stay ours and links stay inside."""
    seed(connection, 20)
    (tmp_path / "base.html").write_text("<script>theirs</script>")
    host = Flask("shop", template_folder=str(tmp_path))
    host.jinja_env.autoescape = False
    mount(host, jobs, url_prefix="/admin/jobs", auth=lambda _request: "admin")
    page = clean(host.test_client().get("/admin/jobs/jobs"))
    assert all(link.startswith(("/admin/jobs", "#", "data:")) for link in page.links)
    host.extensions["jobrunner-web"].reads.close()


def test_links_follow_the_script_name(app, connection) -> None:
    """Under a WSGI server's own prefix every link, form, redirect and file has it."""
    ids = seed(connection, 600)
    app.wsgi_app = DispatcherMiddleware(Flask("outer"), {"/ops": app.wsgi_app})
    client = app.test_client()
    client.environ_base |= {"HTTP_X_TEST_ROLE": "admin", "HTTP_SEC_FETCH_SITE": "same-origin"}
    for url in ("/ops/jobs", f"/ops/jobs/{ids['failed']}", "/ops/queues", "/ops/jobs/0", "/ops/topics", "/ops/dead-letters"):
        page = Page(client.get(url).text)
        assert all(link.startswith(("/ops/", "#", "data:")) for link in page.links), page.links
    assert client.get("/ops/").headers["Location"] == "/ops/jobs"
    assert client.post(f"/ops/jobs/{ids['failed']}/retry").headers["Location"].startswith("/ops/jobs/")


def test_a_large_installation_costs_few_statements(client, connection) -> None:
    """A page is a handful of statements, however many rows it shows."""
    seed(connection, 600)
    from sqlalchemy import event

    reads = client.application.extensions["jobrunner-web"].reads()
    statements: list[str] = []
    event.listen(reads.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for url, most in (("/jobs", 12), ("/jobs?filter=task:s*", 14), (f"/jobs/{1}", 12), ("/queues", 6), ("/workers", 6), ("/topics", 8), ("/dead-letters", 6)):
        statements.clear()
        assert client.get(url).status_code == 200
        assert len(statements) <= most, (url, len(statements))
