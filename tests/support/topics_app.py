"""The application of the chaos tests of topics: handlers that note what they get in a ledger file, or write it into a table.

`JOBRUNNER_CHAOS_SECONDS` is how long a handler takes for a batch.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from jobrunner import Event, JobRunner
from tests.support.chaos_app import note

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

jobs = JobRunner(name="topics")
SECONDS = float(os.environ.get("JOBRUNNER_CHAOS_SECONDS", "0"))
EFFECT = text("INSERT INTO effects (position) VALUES (:position)")
ENOUGH: Any = {"max_attempts": 1000, "max_crashes": 1000, "backoff": "constant", "backoff_base": 0}


@jobs.subscribe("orders", "order.*", group="billing", **ENOUGH)
def billing(event: Event) -> None:
    """A job for each event."""
    note("billed", event.position)


@jobs.subscribe("orders", mode="log", group="search", batch=50, **ENOUGH)
def search(batch: list[Event]) -> None:
    """At least once, in order."""
    for event in batch:
        note("indexed", event.position)
    time.sleep(SECONDS)


@jobs.subscribe("orders", mode="log", group="ledger", batch=50, transactional=True, **ENOUGH)
def ledger(batch: list[Event], *, session: Session) -> None:
    """Exactly once: the effects commit with the group's step."""
    session.execute(EFFECT, [{"position": event.position} for event in batch])
    note("written", batch[-1].position)
    time.sleep(SECONDS)
