"""Who may do what: every route × method × role, the closed default, forged and rebound requests, reads that never write."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_args

import pytest
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.security import generate_password_hash

from jobrunner import JobRunner
from jobrunner.errors import ConfigurationError
from jobrunner.web import Role, basic_auth, create_app, header, localhost_only, mount, serve
from tests.support.seed import seed
from tests.web.conftest import ROLE

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
ROLES = (None, *get_args(Role))
PUBLIC = {"static", "healthz", "readyz"}
WRITES = {
    "api_enqueue", "api_retry", "api_cancel", "retry", "cancel", "api_publish", "api_pull", "api_ack", "api_nack", "api_dead", "api_extend", "api_redrive",
    "api_purge_dead", "api_publish_events", "resume", "redrive",
}  # fmt: skip
FOR_ADMINS = {"api_purge_dead"}
TABLES = ("jobs", "job_history", "job_attempts", "workers", "alembic_version", "events", "subscriptions", "cursors")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture
def bare(dsn) -> Iterator[Flask]:
    """An app with nothing configured: the closed default."""
    made = create_app(dsn=dsn)
    yield made
    made.extensions["jobrunner-web"].reads.close()
    made.extensions["jobrunner-web"].jobs.close()


def routes(app) -> list[tuple[str, set[str], str]]:
    """Endpoint, methods and a URL of each rule."""
    adapter = app.url_map.bind("localhost")
    values = {"job_id": "1", "filename": "app.css", "queue": "emails", "receipt": "1-1", "topic": "orders"}
    return [
        (rule.endpoint.rpartition(".")[2], set(rule.methods), adapter.build(rule.endpoint, {name: values[name] for name in rule.arguments}))
        for rule in app.url_map.iter_rules()
    ]


def digest(connection) -> list[str]:
    """Everything in our tables."""
    return [
        str(connection.execute(f"SELECT md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM jobrunner.{table} t").fetchone())
        for table in TABLES
    ]


def local(**changes) -> dict[str, str]:
    """The environment of a request from a browser on this machine."""
    return {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:8765"} | changes


@pytest.mark.parametrize("role", ROLES)
def test_every_route_method_and_role(app, connection, role) -> None:
    """The matrix: reading needs read, changing needs operate, or admin to remove for good; probes and style sheet need nothing; unknown methods do not exist."""
    seed(connection, 10)
    rules = routes(app)
    allowed = {url: set().union(*(methods for _, methods, other in rules if other == url)) for _, _, url in rules}
    headers = {"Sec-Fetch-Site": "same-origin"} | ({ROLE: role} if role else {})
    checked = 0
    for endpoint, methods, url in rules:
        for method in METHODS:
            if method not in methods and method in allowed[url]:
                continue  # another rule of the same URL answers
            status = (
                app.test_client()
                .open(url, method=method, headers=headers, json={} if method == "POST" else None, buffered=True)
                .status_code
            )
            if method not in allowed[url]:
                assert status == 405, (method, url)
            elif endpoint in PUBLIC:
                assert status in (200, 304), (method, url)
            else:
                needed = ("admin" if endpoint in FOR_ADMINS else "operate") if endpoint in WRITES and method == "POST" else "read"
                may = role is not None and ROLES.index(role) >= ROLES.index(needed)
                assert (status != 403) == may, (method, url, role, status)
                assert status < 500
            checked += 1
    assert checked >= 7 * len(METHODS)


def test_every_route_is_in_this_matrix(app) -> None:
    """A new route that changes something must be named here, and only POST may change anything."""
    for endpoint, methods, _ in routes(app):
        assert ("POST" in methods) == (endpoint in WRITES), endpoint
        assert methods <= {"GET", "HEAD", "OPTIONS", "POST"}


def test_reading_never_writes(app, jobs, connection) -> None:
    """GET, HEAD and OPTIONS of every route leave every table as it was, and never open a connection that could write."""
    ids = seed(connection, 600)
    before = digest(connection)
    for _, methods, url in routes(app):
        for method in ("GET", "HEAD", "OPTIONS"):
            for job_id in ids.values() if url.endswith("/1") else (1,):
                if method in methods:
                    answer = app.test_client().open(url.replace("/1", f"/{job_id}"), method=method, headers={ROLE: "admin"}, buffered=True)
                    assert answer.status_code < 500
    assert digest(connection) == before
    assert jobs._database is None


@pytest.mark.parametrize(
    "url", ["/jobs", "/nothing", "/healthz", "/readyz", "/api/v1/jobs", "/api/v1/nothing", "/static/app.css", "/static/nothing", "/jobs/x"]
)
@pytest.mark.parametrize("role", [None, "read"])
def test_every_answer_has_the_headers(app, url, role) -> None:
    """Whatever is answered, also errors and refusals, carries the policy, and only versioned files may be cached."""
    answer = app.test_client().get(url, headers={ROLE: role} if role else {})
    assert answer.headers.getlist("Content-Security-Policy") == [CSP]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
    versioned = app.test_client().get("/static/app.css?v=1")
    assert "immutable" in versioned.headers["Cache-Control"]
    versioned.close()
    answer.close()


@pytest.mark.parametrize(
    ("headers", "api", "own"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, False, True),
        ({"Sec-Fetch-Site": "none"}, False, True),
        ({"Sec-Fetch-Site": "cross-site"}, False, False),
        ({"Sec-Fetch-Site": "same-site"}, False, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, False, False),
        ({"Origin": "http://localhost"}, False, True),
        ({"Origin": "https://localhost"}, False, True),
        ({"Origin": "http://localhost:81"}, False, False),
        ({"Origin": "http://evil.example"}, False, False),
        ({"Origin": "http://localhost.evil.example"}, False, False),
        ({"Origin": "null"}, False, False),
        ({"Origin": "http://[::1"}, False, False),
        ({"Referer": "http://localhost/jobs/1"}, False, True),
        ({"Referer": "http://evil.example/http://localhost/"}, False, False),
        ({}, False, False),
        ({"Authorization": "Bearer x"}, False, False),
        ({}, True, False),
        ({"Content-Type": "application/json"}, True, True),
        ({"Content-Type": "text/plain"}, True, False),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, True, False),
        ({"Authorization": "Bearer x", "Origin": "http://evil.example"}, True, True),
        ({"Authorization": "Basic eDp5", "Sec-Fetch-Site": "cross-site"}, True, False),
    ],
)
def test_a_change_must_come_from_our_own_page_or_a_program(app, connection, headers, api, own) -> None:
    """Forged forms are refused by what browsers say about their origin; programs need a bearer token or a JSON body."""
    seed(connection, 600)
    job_id = connection.execute("SELECT id FROM jobrunner.job_history WHERE state = 'failed' LIMIT 1").fetchone()[0]
    url = f"/api/v1/jobs/{job_id}/retry" if api else f"/jobs/{job_id}/retry"
    answer = app.test_client().post(url, headers={ROLE: "admin", **headers})
    assert answer.status_code == ((200 if api else 303) if own else 403), answer.text
    assert (connection.execute("SELECT count(*) FROM jobrunner.jobs WHERE id = %s", (job_id,)).fetchone() == (1,)) == own


def test_nothing_configured_is_closed(bare) -> None:
    """Under any WSGI server a dashboard without a check is closed to this machine too, and the page says how to open it."""
    answer = bare.test_client().get("/jobs", environ_overrides=local())
    assert answer.status_code == 403
    assert "from jobrunner.web import basic_auth, mount" in answer.text
    assert "jobrunner@" not in answer.text
    assert bare.test_client().get("/api/v1/jobs", environ_overrides=local()).mimetype == "application/problem+json"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"HTTP_HOST": "localhost:8765"}, 200),
        ({"HTTP_HOST": "[::1]:8765", "REMOTE_ADDR": "::1"}, 200),
        ({"REMOTE_ADDR": "::ffff:127.0.0.1"}, 200),
        ({"HTTP_HOST": "evil.example:8765"}, 403),
        ({"HTTP_HOST": "localhost.evil.example"}, 403),
        ({"HTTP_HOST": "127.0.0.1.evil.example"}, 403),
        ({"HTTP_HOST": "0.0.0.0"}, 403),
        ({"HTTP_HOST": "[::1"}, 403),
        ({"HTTP_HOST": ""}, 403),
        ({"REMOTE_ADDR": "10.0.0.7"}, 403),
        ({"REMOTE_ADDR": ""}, 403),
        ({"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 403),
        ({"HTTP_FORWARDED": "for=127.0.0.1"}, 403),
        ({"HTTP_X_REAL_IP": "127.0.0.1"}, 403),
        ({"HTTP_VIA": "1.1 proxy"}, 403),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, 403),
        ({"HTTP_ORIGIN": "https://shop.example"}, 403),
        ({"HTTP_REFERER": "https://shop.example/jobs", "HTTP_SEC_FETCH_SITE": "same-origin"}, 403),
        ({"HTTP_REFERER": "https://docs.example/", "HTTP_SEC_FETCH_SITE": "cross-site"}, 200),
    ],
)
def test_only_a_browser_on_this_machine_gets_in(bare, changes, status) -> None:
    """Served by ourselves on loopback: no other address, no rebound name, no proxy, spoken or silent."""
    bare.extensions["jobrunner-web"].served_locally = True
    assert bare.test_client().get("/jobs", environ_overrides=local(**changes)).status_code == status


def test_a_debug_app_is_open_to_this_machine_only(bare) -> None:
    """Flask's debug mode counts as development; it opens nothing to anybody else."""
    bare.debug = True
    assert bare.test_client().get("/jobs", environ_overrides=local()).status_code == 200
    assert bare.test_client().get("/jobs", environ_overrides=local(REMOTE_ADDR="10.1.1.1")).status_code == 403


def test_a_forged_address_behind_proxyfix_is_no_loopback(dsn) -> None:
    """ProxyFix takes the address from a header; we look at the connection."""
    app = create_app(dsn=dsn, auth=localhost_only())
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    answer = app.test_client().get("/jobs", environ_overrides=local(REMOTE_ADDR="10.0.0.7", HTTP_X_FORWARDED_FOR="127.0.0.1"))
    assert answer.status_code == 403
    app.extensions["jobrunner-web"].reads.close()


def credentials(user, password) -> dict[str, str]:
    """The header of HTTP Basic."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("kind", ["hash", "variable"])
def test_basic_auth_asks_and_checks(dsn, monkeypatch, kind) -> None:
    """Without or with wrong credentials 401 and a challenge; with the right ones the role, the first time and after."""
    monkeypatch.setenv("JOBRUNNER_WEB_PASSWORD", "geheim ü")
    auth = basic_auth("ana", generate_password_hash("geheim ü", "pbkdf2:sha256:1000")) if kind == "hash" else basic_auth("ana")
    app = create_app(dsn=dsn, auth=auth)
    client = app.test_client()
    for headers in (
        {},
        credentials("ana", "falsch"),
        credentials("bo", "geheim ü"),
        credentials("ana", ""),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Bearer x"},
    ):
        answer = client.get("/jobs", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
    for _ in range(2):
        assert client.get("/jobs", headers=credentials("ana", "geheim ü")).status_code == 200
    assert client.get("/jobs", headers=credentials("ana", "falsch")).status_code == 401
    app.extensions["jobrunner-web"].reads.close()


def test_basic_auth_without_a_password_is_refused(monkeypatch) -> None:
    """A missing or empty variable is a configuration error, not an empty password."""
    for value in (None, ""):
        monkeypatch.setenv("JOBRUNNER_WEB_PASSWORD", value) if value is not None else monkeypatch.delenv(
            "JOBRUNNER_WEB_PASSWORD", raising=False
        )
        with pytest.raises(ConfigurationError, match="JOBRUNNER_WEB_PASSWORD is not set"):
            basic_auth("ana")


def test_a_password_in_the_environment_is_a_check(dsn, monkeypatch) -> None:
    """`create_app()` alone takes the user and password from the environment."""
    monkeypatch.setenv("JOBRUNNER_WEB_PASSWORD", "pw")
    app = create_app(dsn=dsn)
    assert app.test_client().get("/jobs").status_code == 401
    assert app.test_client().get("/jobs", headers=credentials("admin", "pw")).status_code == 200
    app.extensions["jobrunner-web"].reads.close()


@pytest.mark.parametrize(
    ("environ", "role"),
    [
        (local(HTTP_X_FORWARDED_USER="ana", HTTP_HOST="jobs.example"), "admin"),
        (local(HTTP_X_FORWARDED_USER="bo", HTTP_HOST="jobs.example"), "read"),
        (local(HTTP_X_FORWARDED_USER="eve", HTTP_HOST="jobs.example"), None),
        (local(HTTP_X_FORWARDED_USER="ana", HTTP_HOST="jobs.example", REMOTE_ADDR="10.0.0.7"), None),
        (local(HTTP_X_FORWARDED_USER="ana", HTTP_HOST="evil.example"), None),
        (local(HTTP_HOST="jobs.example"), None),
    ],
)
def test_a_header_counts_only_from_the_proxy(environ, role) -> None:
    """The header is believed from the proxy's address and under the right name, for the users in the table."""
    check = header("X-Forwarded-User", roles={"ana": "admin", "bo": "read"}, hosts=("jobs.example",))
    with Flask("x").test_request_context(environ_overrides=environ):
        from flask import request

        assert check(request) == role


def test_a_header_given_twice_is_nobody() -> None:
    """A client that sends the header itself, and a proxy that adds its own, is refused."""
    request = SimpleNamespace(headers=SimpleNamespace(getlist=lambda _name: ["eve", "ana"]), environ=local(), host="x")
    assert header("X-Forwarded-User", role="admin")(request) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [True, "root", "", 1, "ADMIN"])
def test_a_check_that_answers_nonsense_lets_nobody_in(dsn, answer) -> None:
    """Only the three roles are roles; anything else is 500 and closed."""
    app = create_app(dsn=dsn, auth=lambda _request: answer)
    assert app.test_client().get("/jobs").status_code == 500
    app.extensions["jobrunner-web"].reads.close()


def test_a_check_that_fails_lets_nobody_in(dsn) -> None:
    """An exception in the user's check is 500, and its text stays in the log."""

    def broken(_request):
        raise RuntimeError("ldap password s3cret")

    app = create_app(dsn=dsn, auth=broken)
    answer = app.test_client().get("/jobs")
    assert answer.status_code == 500
    assert "s3cret" not in answer.text
    app.extensions["jobrunner-web"].reads.close()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_read_only_is_read_only_for_everybody(jobs, connection, monkeypatch, how) -> None:
    """JOBRUNNER_READ_ONLY or read_only=True caps every role at read, on pages and in the API."""
    ids = seed(connection, 600)
    if how == "variable":
        monkeypatch.setenv("JOBRUNNER_READ_ONLY", "1")
    app = create_app(jobs, auth=lambda _request: "admin", read_only=True if how == "argument" else None)
    client = app.test_client()
    headers = {"Sec-Fetch-Site": "same-origin"}
    before = digest(connection)
    assert client.post(f"/jobs/{ids['failed']}/retry", headers=headers).status_code == 403
    assert client.post(f"/api/v1/jobs/{ids['queued']}/cancel", headers=headers).status_code == 403
    assert client.post("/api/v1/jobs", json={"task": "anything"}, headers=headers).status_code == 403
    assert digest(connection) == before
    assert '<button type="submit" class="primary"' not in client.get(f"/jobs/{ids['failed']}").text
    app.extensions["jobrunner-web"].reads.close()


def test_mounted_routes_are_as_closed_as_standalone_ones(jobs) -> None:
    """Inside a user's app the same checks run under the prefix, and the app's own routes keep their own headers."""
    app = Flask("shop")
    jobs.init_app(app)
    mount(app)
    app.add_url_rule("/", view_func=lambda: "shop")
    client = app.test_client()
    assert client.get("/jobrunner/jobs", environ_overrides=local()).status_code == 403
    assert client.get("/jobrunner/healthz").status_code == 200
    assert "Content-Security-Policy" in client.get("/jobrunner/jobs").headers
    assert "Content-Security-Policy" not in client.get("/").headers
    app.extensions["jobrunner-web"].reads.close()


def test_what_cannot_be_mounted_is_refused(jobs) -> None:
    """No JobRunner, two dashboards, a prefix that is none, a colour that is none: each is a sentence at start-up."""
    with pytest.raises(ConfigurationError, match="has no JobRunner"):
        mount(Flask("empty"))
    app = Flask("shop")
    with pytest.raises(ConfigurationError, match="url_prefix"):
        mount(app, jobs, url_prefix="jobs")
    with pytest.raises(ConfigurationError, match="JOBRUNNER_ENV_COLOR"):
        mount(app, jobs, env_color="pink")
    mount(app, jobs)
    with pytest.raises(ConfigurationError, match="dashboard already"):
        mount(app, jobs)
    with pytest.raises(ConfigurationError, match="one of the two"):
        create_app(jobs, dsn="postgresql:///x")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "web-1"])
def test_an_open_address_needs_a_check(host) -> None:
    """Nothing is served to the network without an access check."""
    app = create_app(JobRunner(dsn="postgresql:///x"))
    with pytest.raises(ConfigurationError, match="refusing to serve"):
        serve(app, host, 0)


def test_a_port_in_use_is_a_sentence() -> None:
    """A second dashboard on the same port says so, and how to go on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = create_app(JobRunner(dsn="postgresql:///x"))
        with pytest.raises(ConfigurationError, match="is in use") as caught:
            serve(app, "127.0.0.1", taken.getsockname()[1])
        assert "--port 0" in caught.value.hint
    for port in (-1, 70_000):
        with pytest.raises(ConfigurationError, match="cannot serve"):
            serve(app, "127.0.0.1", port)
