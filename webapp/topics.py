"""Owns the JSON API of topics: publishing events, and who gets them.

It must not format errors (`problems` does) nor check rights (`access` did before the view ran), nor decide who gets an event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import request

from jobrunner.errors import ConfigurationError
from jobrunner.inspection import list_topics

from . import bodies, render, serial
from .context import dashboard
from .problems import InvalidField
from .routes import Route

if TYPE_CHECKING:
    from flask import Response

    from jobrunner.inspection import Group, TopicRow

OPTIONS = ("delay", "ttl", "priority")
PARTS = ("name", "payload", "key", "headers")  # of one event


def api_topics() -> Response:
    """GET: topics with their groups."""
    for name in request.args:
        raise InvalidField(f"there is no parameter {name}")
    return render.json_response({"items": [_topic(row) for row in list_topics(dashboard().reads())]})


def api_publish_events(topic: str) -> Response:
    """POST: publish an event, or each of `events`; all or none, in a transaction of its own."""
    board, given = dashboard(), bodies.json_object(request)
    bodies.refuse_unknown(given, (*PARTS, "events", *OPTIONS))
    options: dict[str, Any] = {name: given[name] for name in OPTIONS if name in given}
    events = _events(given)
    try:
        positions = board.jobs.topic(topic).publish_many(events, session=None, **options)
    except ConfigurationError as error:  # what is out of range is the client's mistake, not one of the set-up
        raise InvalidField(str(error), hint=error.hint) from error
    board.reads.wrote()
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


def _topic(row: TopicRow) -> dict[str, Any]:
    return {
        "topic": row.name,
        "last_position": row.last_position,
        "last_published_at": serial.instant(row.last_at),
        "groups": [_group(group) for group in row.groups],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "group": group.group,
        "mode": group.mode,
        "state": group.state,
        "patterns": list(group.patterns),
        "task": group.task,
        "queue": group.queue,
        "app": group.app,
        "on_failure": group.on_failure,
        "declared_at": serial.instant(group.declared_at),
        "undeclared_at": serial.instant(group.undeclared_at),
        "position": group.position,
        "lag": None if group.lag is None else {"value": group.lag, "exact": bool(group.exact)},
        "oldest_at": serial.instant(group.oldest_at),
        "stopped_at": serial.instant(group.stopped_at),
        "problem": group.problem,
        "job_id": group.job_id,
        "moved_at": serial.instant(group.moved_at),
        "delivered_count": group.delivered_count,
        "skipped_count": group.skipped_count,
    }


ROUTES = (
    Route("GET", "/topics", api_topics, "read", api=True),
    Route("POST", "/topics/<topic>/events", api_publish_events, "operate", api=True),
)
