"""Wiring D: a subclass that is set up late, adds a header to what it sends, and a base class with hooks."""

# ruff: noqa: ARG002, TRY301  as applications have it
from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path

from flask import Flask, g, has_request_context, request

from jobrunner.compat.celery import Celery, Task


def make_task(app):
    class NotifyTask(Task):
        abstract = True
        start = None

        @property
        def queue_name(self):
            return (self.request.delivery_info or {}).get("routing_key", "none")

        @property
        def request_id(self):
            return self.request.get("notify_request_id")

        @contextmanager
        def app_context(self):
            with app.app_context():
                g.request_id = self.request_id
                yield

        def on_success(self, retval, task_id, args, kwargs):
            with self.app_context():
                note("success", self.name, self.queue_name, g.request_id, time.monotonic() >= self.start, retval)

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            with self.app_context():
                note("failure", self.name, self.queue_name, g.request_id, type(exc).__name__, str(exc))

        def __call__(self, *args, **kwargs):
            with self.app_context():
                self.start = time.monotonic()
                return super().__call__(*args, **kwargs)

    return NotifyTask


class NotifyCelery(Celery):
    def init_app(self, app):
        super().__init__(task_cls=make_task(app))
        self.config_from_object(app.config["CELERY"])

    def send_task(self, name, args=None, kwargs=None, **other_kwargs):
        other_kwargs["headers"] = other_kwargs.get("headers") or {}
        if has_request_context():
            other_kwargs["headers"]["notify_request_id"] = request.headers.get("X-Request-Id")
        return super().send_task(name, args, kwargs, **other_kwargs)


def note(*words):
    with Path(os.environ["WIRED_NOTES"]).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


notify_celery = NotifyCelery()


@notify_celery.task(name="deliver_sms", bind=True, max_retries=2, default_retry_delay=0)
def deliver_sms(self, notification_id):
    if notification_id < 0:
        try:
            raise ConnectionError("provider is away")
        except ConnectionError:
            if self.request.retries == self.max_retries:
                raise LookupError("gave up") from None
            self.retry(queue="retry-tasks")
    return f"delivered {notification_id} {g.request_id}"


application = Flask(__name__)
application.config["CELERY"] = {
    "broker_url": "https://sqs.eu-west-1.amazonaws.com", "broker_transport": "sqs", "task_queues": None, "timezone": "Europe/London",
    "imports": [], "beat_schedule": {},
}  # fmt: skip
notify_celery.init_app(application)


@application.post("/sms/<int(signed=True):number>")
def sms(number):
    return {"id": deliver_sms.apply_async([number], queue="send-sms-tasks").id}


@application.post("/by-name/<int:number>")
def by_name(number):
    return {"id": notify_celery.send_task("deliver_sms", (number,), queue="send-sms-tasks").id}
