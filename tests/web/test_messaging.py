"""The pages of topics and of dead letters: what they say, and that their buttons do it."""

from __future__ import annotations

import pytest

from tests.support.htmlcheck import Page

READER = {"X-Test-Role": "read"}


def clean(answer, status=200) -> Page:
    """The page of an answer, which must be well-formed and hold nothing forbidden."""
    assert answer.status_code == status, answer.text[:500]
    page = Page(answer.text)
    assert page.problems == []
    return page


def readable(page) -> str:
    """What a person reads, in one line."""
    return " ".join("".join(page.text).split())


@pytest.fixture
def search(jobs, connection):
    """A topic with a group of each mode, four events, and the one that reads the log stopped."""

    @jobs.subscribe("orders", "order.*", group="billing")
    def on_order(event):
        """Never run here."""

    @jobs.subscribe("orders", "#", group="search", mode="log")
    def index(batch):
        """Never run here."""

    jobs.topic("orders").publish_many([("order.paid", 1), ("order.sent", 2), ("stock.low", 3), ("order.paid", 4)])
    connection.execute("UPDATE jobrunner.cursors SET stopped_at = now() - interval '1 hour', problem = 'ValueError: cannot take 3', job_id = 7")


def stopped(connection) -> bool:
    return bool(connection.execute("SELECT bool_or(stopped_at IS NOT NULL) FROM jobrunner.cursors").fetchone()[0])


def test_topics_with_their_groups(client, jobs, connection, search) -> None:
    """A topic has its last event and its groups; one that has stopped says since when and why, and how much waits behind it."""
    last = connection.execute("SELECT max(position) FROM jobrunner.events").fetchone()[0]
    text = readable(clean(client.get("/topics")))
    assert f"last event 0 s ago, at {last}" in text or f"ago, at {last}" in text
    assert "billing active queue order.* on_order default – – – –" in text
    assert "search stopped log # index default 4" in text
    assert "stopped 1 h ago: ValueError: cannot take 3 #7" in text


def test_a_group_without_a_topic_and_a_topic_without_a_group(client, jobs, connection) -> None:
    """Both are there: who will get events that nobody has published, and events that nobody gets. What no code declares any more says so."""
    jobs.topic("unheard").publish("a", 1)
    connection.execute(
        "INSERT INTO jobrunner.subscriptions (topic, group_name, mode, task, patterns, undeclared_at) VALUES ('silent', 'old', 'queue', 't', '{#}', now())"
    )
    text = readable(clean(client.get("/topics")))
    assert "silent no event in the log" in text
    assert "no code declares it since" in text
    assert "No group is subscribed." in text


def test_a_stopped_group_is_resumed(client, connection, search) -> None:
    """The button lets it go on, and the page says so; what is not there is a page that says that."""
    answer = client.post("/topics/resume", data={"topic": "orders", "group": "search"})
    assert answer.status_code == 303
    assert "The group goes on where it was" in readable(clean(client.get(answer.headers["Location"])))
    assert not stopped(connection)
    twice = client.post("/topics/resume", data={"topic": "orders", "group": "search"})
    assert "had not stopped" in readable(clean(client.get(twice.headers["Location"])))
    assert "No group 'nobody' is subscribed" in readable(clean(client.post("/topics/resume", data={"topic": "orders", "group": "nobody"}), 404))
    for nonsense in ({}, {"topic": "orders"}, {"topic": "orders", "group": "billing"}, {"topic": "orders", "group": "a\0"}):
        assert "/topics" in clean(client.post("/topics/resume", data=nonsense), 422).links


@pytest.fixture
def letters(jobs):
    """Dead letters of two queues, the newest first; the first one is of `emails`."""
    ids = {}
    for name in ("orders", "emails"):
        queue = jobs.queue(name, max_deliveries=1)
        ids[name] = list(queue.put_many([{"to": f"{name} {number}"} for number in range(3)]))
        for message in queue.pull(3):
            queue.dead(message, f"cannot be sent: {message.body['to']}")
    return ids


def test_dead_letters_with_their_reasons(client, letters) -> None:
    """The newest of all queues, or of one; each leads to its job, and to the others of its queue."""
    page = clean(client.get("/dead-letters"))
    text = readable(page)
    assert "cannot be sent: emails 2" in text
    assert '{"to": "orders 0"}' in text
    assert {f"/jobs/{number}" for numbers in letters.values() for number in numbers} <= set(page.links)
    assert "/dead-letters?queue=emails" in page.links
    one = clean(client.get("/dead-letters?queue=emails"))
    assert "orders" not in readable(one)
    assert "Dead letters of emails" in readable(one)
    clean(client.get("/dead-letters?queue=a%00"), 422)  # no database has one


def test_dead_letters_are_delivered_again(client, jobs, letters) -> None:
    """One, or all of a queue: they wait again, and nothing else does."""
    first = letters["emails"][0]
    answer = client.post("/dead-letters/redrive", data={"queue": "emails", "id": str(first)})
    assert answer.headers["Location"] == "/dead-letters?done=1"
    assert "1 message will be delivered again." in readable(clean(client.get(answer.headers["Location"])))
    assert [waiting.id for waiting in jobs.queue("emails").peek()] == [first]
    answer = client.post("/dead-letters/redrive", data={"queue": "emails", "id": "all", "back": "emails"})
    assert "2 messages will be delivered again." in readable(clean(client.get(answer.headers["Location"])))
    assert "No dead letter in this queue." in readable(clean(client.get("/dead-letters?queue=emails")))
    assert (jobs.queue("emails").size(), jobs.queue("orders").size()) == (3, 0)
    # Of another queue, or gone already: nothing happens, and the page says that it was none.
    again = client.post("/dead-letters/redrive", data={"queue": "emails", "id": str(letters["orders"][0])})
    assert "0 messages will be delivered again." in readable(clean(client.get(again.headers["Location"])))


@pytest.mark.parametrize("given", [{}, {"queue": "emails"}, {"id": "all"}, {"queue": "emails", "id": "x"}, {"queue": "emails", "id": "0"}, {"queue": "emails", "id": "9" * 30}])
def test_a_form_that_makes_no_sense_changes_nothing(client, jobs, letters, given) -> None:
    """It is a page in the frame, which leads back to the dead letters."""
    assert "/dead-letters" in clean(client.post("/dead-letters/redrive", data=given), 422).links
    assert jobs.queue("emails").size() == 0


def test_pages_of_dead_letters(client, jobs) -> None:
    """Each is on one page only, and the last one says that it is."""
    queue = jobs.queue("emails", max_deliveries=1)
    ids = set(queue.put_many(range(120)))
    for message in queue.pull(120):
        message.dead("no")
    url: str | None = "/dead-letters?queue=emails"
    seen = []
    while url is not None:
        page = clean(client.get(url))
        seen += [link for link in page.links if link.startswith("/jobs/")]
        url = next((link for link in page.links if "cursor=" in link), None)
    assert len(seen) == 120
    assert set(seen) == {f"/jobs/{number}" for number in ids}


def test_a_reader_sees_no_buttons(client, connection, letters, search) -> None:
    """What the role forbids is absent, and refused."""
    for url in ("/topics", "/dead-letters", "/dead-letters?queue=emails"):
        page = clean(client.get(url, headers=READER))
        assert not any(link.endswith(("/redrive", "/resume")) for link in page.links)
        assert any(link.endswith(("/redrive", "/resume")) for link in clean(client.get(url)).links)
    clean(client.post("/dead-letters/redrive", data={"queue": "emails", "id": "all"}, headers=READER), 403)
    clean(client.post("/topics/resume", data={"topic": "orders", "group": "search"}, headers=READER), 403)
    assert stopped(connection)


@pytest.mark.parametrize("url", ["/topics/resume", "/dead-letters/redrive"])
def test_a_forged_form_is_refused(client, url) -> None:
    """A page of another site cannot press these buttons either."""
    clean(client.post(url, data={"queue": "emails", "id": "all"}, headers={"Sec-Fetch-Site": "cross-site"}), 403)
