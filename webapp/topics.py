"""Owns the JSON API of topics: publishing events.

It must not format errors (`problems` does) nor check rights (`access` did before the view ran), nor decide who gets an event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import request

from jobrunner.errors import ConfigurationError

from . import bodies, render
from .context import dashboard
from .problems import InvalidField
from .routes import Route

if TYPE_CHECKING:
    from flask import Response

OPTIONS = ("delay", "ttl", "priority")
PARTS = ("name", "payload", "key", "headers")  # of one event


def api_publish_events(topic: str) -> Response:
    """POST: publish an event, or each of `events`; all or none, in a transaction of its own."""
    given = bodies.json_object(request)
    bodies.refuse_unknown(given, (*PARTS, "events", *OPTIONS))
    options: dict[str, Any] = {name: given[name] for name in OPTIONS if name in given}
    events = _events(given)
    try:
        positions = dashboard().jobs.topic(topic).publish_many(events, session=None, **options)
    except ConfigurationError as error:  # what is out of range is the client's mistake, not one of the set-up
        raise InvalidField(str(error), hint=error.hint) from error
    return render.json_response({"positions": positions} if "events" in given else {"position": positions[0]}, 201)


def _events(given: dict[str, Any]) -> list[dict[str, Any]]:
    own = {part: given[part] for part in PARTS if part in given}
    if "events" not in given:
        bodies.text(given, "name")
        return [own]
    if own:
        raise InvalidField(f"{next(iter(own))} goes into each of events", hint="give name for one event, or events for several")
    events = given["events"]
    if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
        raise InvalidField("events must be an array of objects")
    for number, each in enumerate(events):
        bodies.refuse_unknown(each, PARTS, f"events[{number}].")
    return events


ROUTES = (Route("POST", "/topics/<topic>/events", api_publish_events, "operate", api=True),)
