"""Topics over HTTP: events are published once, and got by every group; which groups there are, and how far."""

from __future__ import annotations

import pytest

from jobrunner.inspection import groups

ROLE = "X-Test-Role"
URL = "/api/v1/topics/orders/events"


@pytest.fixture
def subscribed(jobs):
    """A group in queue mode, which gets what is about orders."""

    @jobs.subscribe("orders", "order.*", group="billing")
    def on_order(event):
        """Never run here."""


def problem(response, status, slug):
    """The problem in a response, which must be exactly this one."""
    assert (response.status_code, response.mimetype) == (status, "application/problem+json"), response.text
    assert response.json["type"] == f"urn:jobrunner:problem:{slug}"
    return response.json


def written(connection):
    """(event, priority, ordering key) of each job that was written, in order."""
    return connection.execute("SELECT args->'event', priority, ordering_key FROM jobrunner.jobs ORDER BY id").fetchall()


def test_an_event_is_published(client, connection, subscribed) -> None:
    """It is in the log with everything that was said of it, and a job of each group that it fits."""
    sent = {"name": "order.paid", "payload": {"id": 1}, "key": "order:1", "headers": {"trace": "x"}, "priority": -3, "ttl": "1h"}
    answer = client.post(URL, json=sent)
    assert answer.status_code == 201, answer.text
    found = connection.execute("SELECT position, topic, name, payload, key, headers FROM jobrunner.events").fetchall()
    assert found == [(answer.json["position"], "orders", "order.paid", {"id": 1}, "order:1", {"trace": "x"})]
    ((event, priority, key),) = written(connection)
    assert (event["payload"], event["position"], priority, key) == ({"id": 1}, answer.json["position"], -3, "orders/billing/order:1")


def test_several_are_published_in_their_order(client, connection, subscribed) -> None:
    """`events` are all published or none; a group gets those that fit its patterns."""
    answer = client.post(URL, json={"events": [{"name": "order.paid", "payload": 1}, {"name": "stock.low"}, {"name": "order.sent", "payload": None}]})
    assert answer.status_code == 201, answer.text
    names = connection.execute("SELECT position, name FROM jobrunner.events ORDER BY position").fetchall()
    assert names == list(zip(answer.json["positions"], ["order.paid", "stock.low", "order.sent"], strict=True))
    assert [event["name"] for event, _, _ in written(connection)] == ["order.paid", "order.sent"]
    problem(client.post(URL, json={"events": [{"name": "order.paid"}, {"name": "no name"}]}), 422, "invalid-field")
    assert connection.execute("SELECT count(*) FROM jobrunner.events").fetchone() == (3,)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": ""}, {"name": "order.*"}, {"name": 7}, {"name": "a", "colour": "red"}, {"name": "a", "key": ""}, {"name": "a", "headers": []},
        {"name": "a", "ttl": 0}, {"name": "a", "delay": -1}, {"name": "a", "priority": "high"}, {"name": "a", "priority": 40_000},
        {"events": {}}, {"events": [1]}, {"events": [{}]}, {"events": [{"name": "a", "colour": "red"}]}, {"name": "a", "events": []},
        {"events": [{"name": "a"}], "payload": 1},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(client, connection, body) -> None:
    """A member that is missing, unknown or out of range is a 422 that says so, and nothing is written."""
    assert problem(client.post(URL, json=body), 422, "invalid-field")["detail"]
    assert connection.execute("SELECT count(*) FROM jobrunner.events").fetchone() == (0,)


def test_a_payload_that_json_in_postgresql_cannot_hold(client) -> None:
    """It is the arguments' problem, as for jobs; a topic that can be none is the request's."""
    problem(client.post(URL, json={"name": "a", "payload": "a\0b"}), 422, "invalid-arguments")
    problem(client.post(f"/api/v1/topics/{'x' * 101}/events", json={"name": "a"}), 422, "invalid-field")


def test_topics_and_their_groups(client, jobs, connection, subscribed) -> None:
    """Each topic with its last event and its groups; a group that reads the log says where it is, and what it has yet to have."""

    @jobs.subscribe("orders", "stock.#", group="search", mode="log")
    def index(batch):
        """Never run here."""

    names = ["order.paid", "stock.low", "stock.out", "order.sent"]
    positions = client.post(URL, json={"events": [{"name": name} for name in names]}).json["positions"]
    client.post("/api/v1/topics/unheard/events", json={"name": "a"})
    orders, unheard = client.get("/api/v1/topics").json["items"]
    assert (orders["topic"], orders["last_position"], unheard["topic"], unheard["groups"]) == ("orders", positions[-1], "unheard", [])
    assert orders["last_published_at"].endswith("Z")
    billing, search = orders["groups"]
    assert {name: billing[name] for name in ("group", "mode", "state", "patterns", "task", "lag", "position", "stopped_at")} == {
        "group": "billing", "mode": "queue", "state": "active", "patterns": ["order.*"], "task": "on_order", "lag": None, "position": None,
        "stopped_at": None,
    }  # fmt: skip
    assert (search["group"], search["mode"], search["position"], search["lag"]) == ("search", "log", 0, {"value": 2, "exact": True})
    connection.execute("UPDATE jobrunner.cursors SET stopped_at = now(), problem = 'ValueError: no'")
    assert client.get("/api/v1/topics").json["items"][0]["groups"][1]["state"] == "stopped"
    problem(client.get("/api/v1/topics?colour=red"), 422, "invalid-field")


def test_many_groups_share_what_is_looked_at(client, jobs, monkeypatch) -> None:
    """However many groups read the log, the list looks at so many events in all; a lag that it has not counted to its end says so, also at 0."""
    monkeypatch.setattr(groups, "ALL_COUNTED", 7)

    @jobs.subscribe("orders", "#", group="all", mode="log")
    def keep(batch):
        """Never run here."""

    @jobs.subscribe("orders", "stock.#", group="search", mode="log")
    def index(batch):
        """Never run here."""

    def lags():
        (orders,) = client.get("/api/v1/topics").json["items"]
        return [group["lag"] for group in orders["groups"]]

    client.post(URL, json={"events": [{"name": "order.paid"}, {"name": "order.sent"}]})
    assert lags() == [{"value": 2, "exact": True}, {"value": 0, "exact": True}]
    client.post(URL, json={"events": [{"name": "order.paid"}, {"name": "stock.low"}]})
    assert lags() == [{"value": 3, "exact": False}, {"value": 0, "exact": False}]
    page = client.get("/topics").text
    assert 'data-label="lag">3+<' in page
    assert 'data-label="lag">0+<' in page


def test_no_topics(client) -> None:
    """Nothing is there until somebody publishes or subscribes."""
    assert client.get("/api/v1/topics").json == {"items": []}


@pytest.mark.parametrize(("role", "status"), [("read", 403), ("operate", 201)])
def test_who_may_publish(client, role, status) -> None:
    """Publishing needs `operate`, as putting a message does."""
    assert client.post(URL, headers={ROLE: role}, json={"name": "order.paid"}).status_code == status
