"""`task_routes` and `task_queues` decide where a task goes, in all the forms that Celery takes."""

# ruff: noqa: ARG002  routers have Celery's arguments
from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from jobrunner.compat.celery import Celery
from jobrunner.compat.celery.exceptions import QueueNotFound


def queue_of(name, *, options=None, args=(), **settings):
    """The queue that a call of a task goes to."""
    return Celery(**settings).router.route(dict(options or {}), name, args)["queue"]


def by_function(name, args, kwargs, options, task=None, **kw):
    """A route that looks at the arguments."""
    return {"queue": f"user-{args[0]}"} if name == "feed.user" else None


class OldRouter:
    """A route as they were before Celery 4."""

    def route_for_task(self, task, args=None, kwargs=None):
        return "old" if task == "feed.old" else None


ROUTES = [{"feed.one": "by-name", "feed.two": {"queue": "by-dict", "priority": 3}}, by_function, OldRouter(), {re.compile(r"video\..*"): "regex", "img.*": "glob"}]


@pytest.mark.parametrize(("name", "queue"), [
    ("feed.one", "by-name"), ("feed.two", "by-dict"), ("feed.user", "user-7"), ("feed.old", "old"), ("video.cut", "regex"), ("img.a.b", "glob"),
    ("mail.send", "celery"),
])  # fmt: skip
def test_the_first_route_that_knows_the_task_decides(name, queue):
    """Names, functions, objects, regular expressions and globs, in the order in which they are listed; else the default queue."""
    assert queue_of(name, args=(7,), task_routes=ROUTES) == queue


def test_the_call_goes_before_the_route():
    """`queue=` wins; what the route says besides is kept; kombu's Queue is read by its name."""
    app = Celery(task_routes=ROUTES)
    assert app.router.route({"queue": "mine"}, "feed.two") == {"queue": "mine", "priority": 3}
    assert queue_of("x", options={"queue": SimpleNamespace(name="kombu", routing_key="k")}) == "kombu"
    assert queue_of("x", task_default_queue="main") == "main"


def test_unknown_queues_are_refused_on_request():
    """With `task_create_missing_queues=False` only those of `task_queues` may be named."""
    settings = {"task_create_missing_queues": False, "task_queues": [SimpleNamespace(name="a", routing_key="key.a"), "b"]}
    assert queue_of("x", options={"queue": "b"}, **settings) == "b"
    with pytest.raises(QueueNotFound, match="missing from task_queues"):
        queue_of("x", options={"queue": "c"}, **settings)


def test_a_routing_key_stands_for_the_queue_that_has_it():
    """Of `task_queues` as a list of queues or as a mapping; on the default exchange it is the queue's name."""
    queues = {"a": {"exchange": "e", "routing_key": "key.a"}}
    assert queue_of("x", options={"routing_key": "key.a"}, task_queues=queues) == "a"
    assert queue_of("x", options={"routing_key": "key.z"}, task_queues=queues) == "celery"
    assert queue_of("x", options={"routing_key": "direct", "exchange": ""}) == "direct"


def test_routes_may_be_changed_late():
    """A factory or a test that changes the setting changes where the next call goes."""
    app = Celery()
    assert app.router.route({}, "x")["queue"] == "celery"
    app.conf.task_routes = {"x": "late"}
    assert app.router.route({}, "x")["queue"] == "late"
