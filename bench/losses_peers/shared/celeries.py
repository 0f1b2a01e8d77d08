"""Owns what all contenders with a Celery application have in common; they differ in broker, settings and storage."""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from contending import SLOTS, Contender, roll_back

if TYPE_CHECKING:
    from collections.abc import Iterable

SAFE = {"task_acks_late": True, "task_reject_on_worker_lost": True}
"""What Celery's documentation has for tasks that must survive their worker."""


class CeleryContender(Contender):
    """A Celery application and `celery worker`.

    Attributes:
        settings: of the application, beside those of its broker.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012  never changed

    def broker(self) -> str:
        """Its address."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """`broker_transport_options`; must heed `self.timeout`."""
        return {}

    def bodies(self) -> Iterable[str | bytes]:
        """What the broker holds: the bodies of messages."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What `celeryapp` reads."""
        settings = self.settings | {"broker_transport_options": self.options()}
        return {"LOSSES_BROKER": self.broker(), "LOSSES_SETTINGS": json.dumps(settings)}

    def prepare(self) -> None:
        """Import the application, with its settings in place."""
        os.environ.update(self.environment())
        import celeryapp

        self.app = celeryapp.app
        self.work = celeryapp.work

    def command(self) -> list[str]:
        """`celery worker`."""
        return [sys.executable, "-m", "celery", "--app", "celeryapp", "worker", "--concurrency", str(SLOTS), "--loglevel", "WARNING"]

    def now(self, numbers: list[int], seconds: float) -> None:
        """`work.delay(…)`."""
        for number in numbers:
            self.work.delay(number, seconds)

    def later(self, numbers: list[int], delay: float) -> None:
        """`work.apply_async(…, countdown=…)`."""
        for number in numbers:
            self.work.apply_async((number, 0.0), countdown=delay)

    def rolled_back(self, numbers: list[int]) -> None:
        """`work.delay(…)` amid a transaction: Celery has `delay_on_commit` for Django only."""
        for number in numbers:
            roll_back(self.dsn, lambda _, number=number: self.work.delay(number, 0.0))  # type: ignore[misc]

    def held(self) -> list[int]:
        """By the first argument in the bodies."""
        return [number_in(body) for body in self.bodies()]


def number_in(body: str | bytes) -> int:
    """The job's number in the body of a message of Celery's protocol 2, as JSON or as Kombu's base64 of it."""
    try:
        arguments, _, _ = json.loads(body)
    except ValueError:
        arguments, _, _ = json.loads(base64.b64decode(body))
    return int(arguments[0])
