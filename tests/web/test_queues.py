"""Messages over HTTP: published, pulled and settled by whoever has the receipt; dead letters listed, redriven and removed."""

from __future__ import annotations

import pytest

from tests.support.rows import Scene
from tests.support.waiting import wait_until

ROLE = "X-Test-Role"
URL = "/api/v1/queues/emails"


def problem(response, status, slug):
    """The problem in a response, which must be exactly this one."""
    assert (response.status_code, response.mimetype) == (status, "application/problem+json"), response.text
    assert response.json["type"] == f"urn:jobrunner:problem:{slug}"
    return response.json


def pull(client, **given):
    """What a pull gives."""
    answer = client.post(f"{URL}/pull", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json["messages"]


def settle(client, receipt, verb, **given):
    return client.post(f"{URL}/messages/{receipt}/{verb}", json=given)


def test_a_message_goes_in_and_comes_out(client) -> None:
    """What is published is pulled once, with everything that was said of it, and gone when it is acknowledged."""
    made = client.post(f"{URL}/messages", json={"body": {"to": "ana"}, "headers": {"trace": "1"}, "key": "k", "priority": -2, "ttl": "1h"})
    assert made.status_code == 201
    assert client.get(URL).json == {"queue": "emails", "waiting": 1}
    (message,) = pull(client, max=10, lease=60)
    assert (message["id"], message["body"], message["headers"], message["key"], message["priority"]) == (made.json["id"], {"to": "ana"}, {"trace": "1"}, "k", -2)
    assert (message["attempt"], message["max_deliveries"], message["redelivered"]) == (1, 5, False)
    assert message["enqueued_at"].endswith("Z")
    assert message["expires_at"] > message["enqueued_at"]
    assert pull(client) == []
    assert client.post(f"{URL}/messages/{message['receipt']}/ack", headers={"Content-Type": "application/json"}).json == {"settled": "ack"}
    problem(settle(client, message["receipt"], "ack"), 409, "lease-lost")
    assert client.get(f"/api/v1/jobs/{message['id']}").json["state"] == "succeeded"


def test_several_at_once(client) -> None:
    """`bodies` are all put or none, in their order."""
    made = client.post(f"{URL}/messages", json={"bodies": ["a", {"b": 1}, None]})
    assert [message["body"] for message in pull(client, max=3)] == ["a", {"b": 1}, None]
    assert len(made.json["ids"]) == 3


def test_given_back_extended_and_dead(client) -> None:
    """nack brings it again, extend holds it, dead ends it with the reason among the dead letters; redriven it comes again."""
    client.post(f"{URL}/messages", json={"body": 1})
    (first,) = pull(client)
    assert settle(client, first["receipt"], "nack", delay=0, reason="busy").json == {"settled": "nack"}
    (second,) = pull(client, lease=60)
    assert (second["id"], second["attempt"], second["redelivered"]) == (first["id"], 2, True)
    assert settle(client, second["receipt"], "extend", lease=600).json == {"lease": 600}
    assert settle(client, second["receipt"], "dead", reason="cannot be parsed").json == {"settled": "dead"}
    (letter,) = client.get(f"{URL}/dead").json["items"]
    assert (letter["id"], letter["body"], letter["state"], letter["reason"]) == (first["id"], 1, "failed", "cannot be parsed")
    assert client.post(f"{URL}/dead/redrive", json={"ids": [first["id"]]}).json == {"redriven": 1}
    (third,) = pull(client)
    assert third["attempt"] == 1
    settle(client, third["receipt"], "dead", reason="still not")
    assert client.post(f"{URL}/dead/purge", json={}).json == {"purged": 1}
    assert client.get(f"{URL}/dead").json == {"items": [], "next": None}


def test_durations_may_be_text(client, connection) -> None:
    """As in `delay` and `ttl` of a message, so wherever a request says how long."""
    client.post(f"{URL}/messages", json={"body": 1, "delay": "0s", "ttl": "2h"})
    (message,) = pull(client, lease="1m")
    assert settle(client, message["receipt"], "extend", lease="90s").json == {"lease": "90s"}
    held = connection.execute("SELECT lease_expires_at > now() + interval '80 s' FROM jobrunner.workers").fetchall()
    assert held == [(True,)]
    assert settle(client, message["receipt"], "nack", delay="1h30m").json == {"settled": "nack"}
    assert connection.execute("SELECT run_at > now() + interval '89 m' FROM jobrunner.jobs").fetchall() == [(True,)]


def test_dead_letters_come_in_pages(client, jobs) -> None:
    """`next` leads from page to page, each dead letter once."""
    queue = jobs.queue("emails")
    queue.put_many(range(5))
    for message in queue.pull(5):
        message.dead("no")
    seen, cursor = [], None
    while True:
        page = client.get(f"{URL}/dead", query_string={"limit": 2, **({"cursor": cursor} if cursor else {})}).json
        seen += [letter["id"] for letter in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert len(seen) == len(set(seen)) == 5


def test_a_pull_does_not_depend_on_the_process_that_answered(client, jobs, connection) -> None:
    """Not even the end of the web process takes a message from the client that holds it; the end of its lease does."""
    client.post(f"{URL}/messages", json={"body": 1})
    (message,) = pull(client, lease=600)
    jobs.close()
    Scene(connection).store.rescue()
    assert pull(client) == []
    connection.execute("UPDATE jobrunner.workers SET lease_expires_at = now()")
    jobs.queue("emails")
    wait_until(lambda: pull(client), timeout=30, what="the message to come again")
    problem(settle(client, message["receipt"], "ack"), 409, "lease-lost")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/messages", {}), ("/messages", {"body": 1, "bodies": []}), ("/messages", {"bodies": 1}), ("/messages", {"body": 1, "colour": "red"}),
        ("/messages", {"body": 1, "priority": "high"}), ("/messages", {"body": 1, "key": ""}), ("/messages", {"body": 1, "ttl": 0}),
        ("/messages", {"body": 1, "headers": []}), ("/pull", {"max": 0}), ("/pull", {"max": "2"}), ("/pull", {"lease": 0.1}), ("/pull", {"lease": None}),
        ("/pull", {"wait": 1}), ("/messages/7/ack", {}), ("/messages/7-1/nack", {"delay": "soon"}), ("/messages/7-1/nack", {"delay": -1}), ("/messages/7-1/nack", {"delay": 1e300}),
        ("/messages/7-1/dead", {}), ("/messages/7-1/extend", {}), ("/messages/7-1/extend", {"lease": 1e9}), ("/dead/redrive", {"ids": "all"}),
        ("/dead/redrive", {"ids": [0]}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(client, path, body) -> None:
    """A member that is missing, unknown or out of range is a 422 that says so, and nothing is written."""
    assert problem(client.post(URL + path, json=body), 422, "invalid-field")["detail"]
    assert client.get(URL).json["waiting"] == 0


def test_a_body_that_python_cannot_read_is_shown(client, connection) -> None:
    """A dead letter that plain SQL wrote may hold numbers that no Python can be made of: they are text, and the list is there."""
    connection.execute(
        "INSERT INTO jobrunner.job_history (id, task, queue, args, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, "
        "backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes) SELECT 7, 'jobrunner.message', 'emails', "
        "jsonb_build_object('body', (repeat('9', 5000))::numeric), 0, '{}', now(), now(), 'failed', 1, 1, 1, 'constant', '0', '0', 0, 0, 1"
    )
    (letter,) = client.get(f"{URL}/dead").json["items"]
    assert letter["body"] == "9" * 5000


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "cursor=x", "cursor=2026-01-01T00:00:00Z~x", "colour=red"])
def test_a_parameter_that_makes_no_sense_is_refused(client, query) -> None:
    """The list of dead letters takes its own cursors and numbers only."""
    problem(client.get(f"{URL}/dead?{query}"), 422, "invalid-field")


def test_a_receipt_that_nobody_gave(client) -> None:
    """A receipt that was never given, or was for another delivery, is answered as one whose lease is over."""
    for verb, body in (("ack", {}), ("nack", {}), ("dead", {"reason": "x"}), ("extend", {"lease": 5})):
        problem(settle(client, "981223-1", verb, **body), 409, "lease-lost")


def test_a_body_that_json_in_postgresql_cannot_hold(client) -> None:
    """It is the arguments' problem, as for jobs."""
    problem(client.post(f"{URL}/messages", json={"body": "a\0b"}), 422, "invalid-arguments")


@pytest.mark.parametrize(
    ("method", "path", "role", "status"),
    [
        ("GET", "", "read", 200), ("GET", "/dead", "read", 200), ("POST", "/pull", "read", 403), ("POST", "/messages", "read", 403),
        ("POST", "/pull", "operate", 200), ("POST", "/dead/redrive", "operate", 200), ("POST", "/dead/purge", "operate", 403),
        ("POST", "/dead/purge", "admin", 200),
    ],
)  # fmt: skip
def test_who_may_do_what(client, method, path, role, status) -> None:
    """Looking needs `read`, taking and putting `operate`, removing for good `admin`."""
    answer = client.open(URL + path, method=method, headers={ROLE: role}, json={} if method == "POST" else None)
    assert answer.status_code == status
