import pytest
from shop import User, count_letters, db, outbox, remind, send_welcome


def test_signing_up_enqueues_a_letter(client, jobs_testing):
    user_id = client.post("/users/ann@example.org").json["id"]
    jobs_testing.assert_enqueued(send_welcome, args=(user_id,), queue="mail", count=1)
    jobs_testing.assert_enqueued(remind, delay="3d")

def test_a_refused_address_enqueues_nothing(client, jobs_testing):
    assert client.post("/users/ann").status_code == 400
    jobs_testing.assert_not_enqueued()

def test_the_letter_is_sent(app, client, jobs_testing):
    user_id = client.post("/users/ann@example.org").json["id"]
    assert jobs_testing.drain().counts == {"succeeded": 1}
    assert outbox == [("ann@example.org", "Welcome!")]
    with app.app_context():
        assert db.session.get_one(User, user_id).welcomed

def test_a_reminder_comes_after_three_days(client, jobs_testing):
    client.post("/users/ann@example.org")
    jobs_testing.drain()
    jobs_testing.clock.advance(days=3)
    jobs_testing.drain()
    assert [text for _, text in outbox] == ["Welcome!", "Still there?"]

def test_a_mail_server_that_is_down(client, jobs_testing):
    client.post("/users/ann@down.example")
    with pytest.raises(ConnectionError):
        jobs_testing.drain()
    [letter] = jobs_testing.enqueued(send_welcome, state="retrying")
    for _ in range(2):
        jobs_testing.clock.advance(minutes=1)
        jobs_testing.drain(tasks=send_welcome, raise_errors=False)
    assert letter.job.refresh().state == "failed"

def test_a_reminder_waits_for_the_welcome(client, jobs_testing):
    client.post("/users/ann@example.org")
    jobs_testing.clock.advance(days=3)
    assert jobs_testing.drain(tasks=remind).counts == {"retried": 1}
    jobs_testing.assert_enqueued(remind, state="retrying", at=jobs_testing.clock.advance(hours=1))

def test_arguments_and_results_survive(jobs_testing):
    assert jobs_testing.perform(count_letters, ["to", "be"]) == {"to": 2, "be": 2}

def test_in_one_go(client, jobs_testing):
    with jobs_testing.immediate():
        client.post("/users/ann@example.org")
    assert outbox == [("ann@example.org", "Welcome!")]
