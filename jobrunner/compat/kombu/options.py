"""Owns the transport's own settings: what Celery's `broker_transport_options` may say to it, with clear refusals.

It must not know what they are for beyond their ranges.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.errors import ConfigurationError
from jobrunner.settings import LEASE

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST_LEASE = 1.0  # seconds; the heartbeat goes out every third of it
MOST_LEASE = 86_400.0  # seconds
POLL = 1.0  # seconds between two looks at an idle queue whose hints are heard
DEAF_POLL = 0.25  # seconds between two looks when no hint can come: through a pooler, or as told
LEAST_POLL, MOST_POLL = 0.01, 60.0  # seconds
HIGHEST_FIRST, LOWEST_FIRST = "highest_first", "lowest_first"


class Options(NamedTuple):
    """The settings of one connection.

    Attributes:
        lease: how long after its last heartbeat a consumer's messages are given to others.
        listen: whether hints are listened for.
        poll: seconds between two looks at an idle queue; None: by whether hints are heard.
        lowest_first: whether priority 0 is the most urgent, as with Redis, and not the least, as with RabbitMQ.
    """

    lease: timedelta = LEASE
    listen: bool = True
    poll: float | None = None
    lowest_first: bool = False


def read_options(given: Mapping[str, Any]) -> Options:
    """The settings in `broker_transport_options`; those of other transports in it do not matter.

    Raises:
        ConfigurationError: one of ours is out of range.
    """
    lease = _number(given, "lease", LEASE.total_seconds(), LEAST_LEASE, MOST_LEASE)
    poll = None if given.get("polling_interval") is None else _number(given, "polling_interval", POLL, LEAST_POLL, MOST_POLL)
    order = given.get("priority_order", HIGHEST_FIRST)
    if order not in {HIGHEST_FIRST, LOWEST_FIRST}:
        raise _refusal("priority_order", order, f"{HIGHEST_FIRST!r} (as RabbitMQ) or {LOWEST_FIRST!r} (as Redis)")
    listen = given.get("listen", True)
    if not isinstance(listen, bool):
        raise _refusal("listen", listen, "True or False")
    return Options(timedelta(seconds=lease), listen, poll, order == LOWEST_FIRST)


def _number(given: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _refusal(name, value, f"a number of seconds from {least:g} to {most:g}")
    return float(value)


def _refusal(name: str, value: object, expected: str) -> ConfigurationError:
    return ConfigurationError(f"broker_transport_options[{name!r}]={value!r}: expected {expected}")
