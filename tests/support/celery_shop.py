"""Owns an ordinary Celery application, as somebody wrote it for another broker: nothing in it is ours but the address in its environment."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ.get("SHOP_RESULTS"))
app.conf.update(broker_connection_retry_on_startup=True, **json.loads(os.environ.get("SHOP_SETTINGS", "{}")))


def note(event: str, number: object) -> None:
    """One line in the ledger, written whole."""
    with open(os.environ["SHOP_LEDGER"], "ab", buffering=0) as ledger:  # noqa: PTH123  unbuffered: one write each
        ledger.write(f"{event} {number} {os.getpid()} 0\n".encode())


@app.task
def sell(number: int, seconds: float = 0.0) -> int:
    """Take some time, and say when it began and ended."""
    note("start", number)
    time.sleep(seconds)
    note("end", number)
    return number


@app.task
def add(left: int, right: int) -> int:
    """Add."""
    return left + right


@app.task
def total(numbers: list[int]) -> int:
    """What a chord's body does."""
    return sum(numbers)


@app.task
def echo(values: list[int]) -> list[int]:
    """Give back what came in."""
    return values


@app.task(bind=True)
def adds_parts(self, numbers: list[int]) -> int:
    """A part of a chord that adds parts to it while it runs."""
    for number in numbers:
        self.add_to_chord(add.s(number, 0))
    return 0


@app.task
def divide(left: int, right: int) -> float:
    """Divide, or fail."""
    return left / right


@app.task
def regret(task_id: str) -> None:
    """An errback of the old form: which task has failed."""
    note("regret", task_id)


@app.task(bind=True, max_retries=2)
def stubborn(self, number: int) -> int:
    """Fail once, then succeed."""
    note("start", number)
    if self.request.retries == 0:
        raise self.retry(countdown=1)
    note("end", number)
    return number


@app.task
def passes_on(number: int) -> None:
    """Send a task from inside of one: from a child of the worker."""
    sell.delay(number)
