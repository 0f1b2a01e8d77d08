"""Owns the difference between this host's clock and the database's. It must not decide anything by either.

Workers' clocks cannot be told from here: nothing that a worker stores comes from its own clock. Run the doctor on their hosts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner import clock
from jobrunner.doctor.findings import Finding, Look
from jobrunner.inspection import ago

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOW = sa.text("SELECT clock_timestamp()")


def wall() -> datetime:
    """This host's time."""
    return datetime.now(UTC)


def skew(connection: sa.Connection) -> tuple[timedelta, timedelta]:
    """How far this clock is ahead of the database's, and how far off that may be: half of the answer's way."""
    began = clock.monotonic()
    here = wall()
    there: datetime = connection.execute(_NOW).scalar_one()
    half = timedelta(seconds=(clock.monotonic() - began) / 2)
    return here + half - there, half


def look(given: Look) -> Iterator[Finding]:
    """Whether the two clocks agree."""
    ahead, error = skew(given.connection)
    data = {"ahead_seconds": round(ahead.total_seconds(), 3), "error_seconds": round(error.total_seconds(), 3)}
    if abs(ahead) - error < given.limits.skew:
        yield Finding("clock_skew", "ok", f"this clock and the database's agree to {ago(max(abs(ahead), error))}", data=data)
        return
    text = (
        f"this host's clock is {ago(abs(ahead))} {'ahead of' if ahead > timedelta(0) else 'behind'} the database's. Jobs go by the "
        "database's; cron starts by this one, and logs of this host are hard to compare"
    )
    yield Finding("clock_skew", "note", text, "chronyc makestep", data)
