"""The Celery application that workers run: what anybody would write for any broker."""

from __future__ import annotations

import json
import os
from typing import Any

import notes
from celery import Celery

app = Celery("losses", broker=os.environ["LOSSES_BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, **json.loads(os.environ["LOSSES_SETTINGS"]))


@app.task(name="work", bind=True)
def work(self: Any, number: int, seconds: float) -> None:
    """The job; of attempts Celery says only whether the message has been given to somebody before."""
    notes.work(number, seconds, 2 if self.request.delivery_info.get("redelivered") else 1)
