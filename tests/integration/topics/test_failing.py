"""What becomes of a batch that failed: it comes again as it was, and then its group stops or goes past it."""

from __future__ import annotations

from jobrunner import Fail, Snooze
from jobrunner.topics import groups
from tests.support.topics import cursor, publish
from tests.support.waiting import wait_until

NOW = {"max_attempts": 2, "backoff": "constant", "backoff_base": 0}
HISTORY = "SELECT state, attempt, result FROM jobrunner.job_history ORDER BY id"


def test_a_failed_batch_is_tried_again_as_it_was(shop, connection):
    """The next attempt gets the same events, though others have come since; what follows has a job with attempts of its own."""
    shop.log("search", batch=10, **NOW)
    shop.topic.publish_many([("order.paid", number) for number in range(3)])
    shop.failing = {1}
    shop.meanwhile = lambda: publish(connection, 3) if not shop.got[1:] else None
    shop.drain_until_called(1)
    shop.failing = set()
    shop.drain_until("search", 0, 1, 2, 0, 1, 2, 3)
    assert [payloads for _, payloads in shop.got] == [[0, 1, 2], [0, 1, 2], [3]]
    assert [row[:2] for row in connection.execute(HISTORY).fetchall()][-2:] == [("succeeded", 2), ("succeeded", 1)]


def test_a_group_stops_after_its_last_attempt(shop, connection):
    """With `stop` nothing goes past events that failed: the group stands still, its job is a failed one, and resumed it tries again."""
    shop.log("search", batch=2, **NOW)
    shop.topic.publish_many([("order.paid", number) for number in range(4)])
    shop.failing = {1}
    shop.drain_until_stopped("search")
    assert [payloads for _, payloads in shop.got] == [[0, 1], [0, 1]]
    found = shop.group("search")
    assert (found.state, found.problem, found.lag) == ("stopped", f"job {found.job_id} failed", 4)
    assert shop.jobs.job(found.job_id).state == "failed"
    assert len(shop.drain()) == 0, "it is left alone"
    shop.failing = set()
    assert groups.resume(shop.jobs.database, "orders", "search", shop.jobs.wake)
    assert not groups.resume(shop.jobs.database, "orders", "search", shop.jobs.wake)
    shop.got.clear()
    shop.drain_until("search", 0, 1, 2, 3)


def test_the_failed_job_of_a_stopped_group_can_be_retried(shop, connection):
    """`jobs retry` of that job is as good as resuming the group: it delivers, and the group goes on."""
    shop.log("search", **NOW)
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_until_stopped("search")
    shop.failing = set()
    shop.got.clear()
    shop.jobs.job(shop.group("search").job_id).retry()
    shop.topic.publish("order.paid", 2)
    shop.drain_until("search", 1, 2)
    assert shop.group("search").state in {"active", "waiting"}


def test_a_group_goes_past_events_that_failed(shop, connection):
    """With `skip` the group goes on behind the failed batch; its job is the dead letter: retried, it delivers exactly those events, once."""
    shop.log("search", batch=2, on_failure="skip", **NOW)
    shop.topic.publish_many([("order.paid", number) for number in range(6)])
    shop.failing = {2}
    shop.drain_to_the_end("search")
    assert [payloads for _, payloads in shop.got] == [[0, 1], [2, 3], [2, 3], [4, 5]]
    assert (shop.group("search").skipped_count, shop.group("search").lag) == (1, 0)
    (job_id,) = connection.execute("SELECT job_id FROM jobrunner.event_skips").fetchone()
    shop.failing = set()
    shop.got.clear()
    before = cursor(connection, "search")
    shop.jobs.job(job_id).retry()
    shop.topic.publish("order.paid", 6)
    wait_until(lambda: (shop.drain(), len(shop.got) >= 2)[1], timeout=90, what="both to be delivered")
    assert sorted(payloads for _, payloads in shop.got) == [[2, 3], [6]]
    assert cursor(connection, "search") > before
    assert shop.group("search").skipped_count == 0
    assert shop.jobs.job(job_id).state == "succeeded"


def test_a_handler_may_say_what_becomes_of_its_batch(shop, connection):
    """Fail gives up at once, as any task; a snooze comes back later with the same events and costs no attempt."""
    shop.log("search", on_failure="skip", **NOW | {"max_attempts": 5})
    said = iter([Snooze(0), Fail("no"), None])

    def say():
        word = next(said, None)
        if word is not None:
            raise word

    shop.meanwhile = say
    shop.topic.publish("order.paid", 1)
    shop.drain_to_the_end("search")
    assert [payloads for _, payloads in shop.got] == [[1], [1]]
    assert connection.execute("SELECT state, attempt FROM jobrunner.job_history WHERE state = 'failed'").fetchall() == [("failed", 1)]


def test_a_cancelled_delivery_stops_the_group(shop, connection):
    """An operator who cancels the job of a group finds the group stopped, not a new job a second later."""
    shop.log("search", **NOW | {"backoff_base": 60})
    shop.topic.publish("order.paid", 1)
    shop.failing = {1}
    shop.drain_until_called(1)
    shop.jobs.job(connection.execute("SELECT id FROM jobrunner.jobs").fetchone()[0]).cancel()
    shop.drain_until_stopped("search")
    assert shop.group("search").problem.endswith("was cancelled")
