"""Owns the JSON API of message queues: publish, pull, settle, and the dead letters.

It must not format errors (`problems` does) nor check rights (`access` did before the view ran). What is pulled is held for the
client, not for this process, which may end at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import request

from jobrunner.errors import ConfigurationError
from jobrunner.inspection import count_messages, list_dead_messages

from . import bodies, render, serial
from .context import dashboard
from .problems import InvalidField
from .routes import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from flask import Response

    from jobrunner.database import Database
    from jobrunner.envelopes import Message
    from jobrunner.inspection import DeadMessage
    from jobrunner.messages import MessageQueue

PUBLISHED = ("body", "bodies", "headers", "delay", "key", "priority", "ttl")
PULLED = ("max", "lease")
DEFAULT_LEASE = 30  # seconds
DEAD_SHOWN, MOST_DEAD = 50, 200
CURSOR_BETWEEN = "~"
MOST_DIGITS = 19  # of an id


def api_queue(queue: str) -> Response:
    """GET: how many messages wait."""
    return render.json_response({"queue": queue, "waiting": count_messages(database_of(queue), queue)})


def api_publish(queue: str) -> Response:
    """POST: put a message, or one for each of `bodies`; all or none."""
    given = bodies.json_object(request)
    bodies.refuse_unknown(given, PUBLISHED)
    if ("body" in given) == ("bodies" in given):
        raise InvalidField("give body for one message, or bodies for several")
    options: dict[str, Any] = {name: given[name] for name in ("delay", "key", "ttl") if name in given}
    options["priority"] = given.get("priority", 0)
    options["headers"] = bodies.mapping(given, "headers") if "headers" in given else None
    target = _queue(queue)
    if "body" in given:
        message_id = checked(lambda: target.put(given["body"], session=None, **options))
        return render.json_response({"id": message_id}, 201)
    if not isinstance(given["bodies"], list):
        raise InvalidField("bodies must be an array")
    ids = checked(lambda: target.put_many(given["bodies"], session=None, **options))
    return render.json_response({"ids": list(ids)}, 201)


def api_pull(queue: str) -> Response:
    """POST: at most `max` messages, held for `lease`; an empty list when there is none."""
    given = _optional_body(PULLED)
    target = _queue(queue)
    found = checked(lambda: target.pull(given.get("max", 1), lease=given.get("lease", DEFAULT_LEASE)))
    return render.json_response({"messages": [_message(each) for each in found]})


def api_ack(queue: str, receipt: str) -> Response:
    """POST: a message that was pulled is done."""
    _optional_body(())
    checked(lambda: _queue(queue).ack(receipt))
    return render.json_response({"settled": "ack"})


def api_nack(queue: str, receipt: str) -> Response:
    """POST: give it back, to be delivered again after `delay` or the backoff of its queue."""
    given = _optional_body(("delay", "reason"))
    reason = bodies.text(given, "reason") if "reason" in given else ""
    checked(lambda: _queue(queue).nack(receipt, delay=_duration(given, "delay"), reason=reason))
    return render.json_response({"settled": "nack"})


def api_dead(queue: str, receipt: str) -> Response:
    """POST: it cannot be handled; it is a dead letter with the `reason`."""
    given = bodies.json_object(request)
    bodies.refuse_unknown(given, ("reason",))
    reason = bodies.text(given, "reason")
    checked(lambda: _queue(queue).dead_letter(receipt, reason))
    return render.json_response({"settled": "dead"})


def api_extend(queue: str, receipt: str) -> Response:
    """POST: hold it, and what was pulled with it, for `lease` from now on."""
    given = bodies.json_object(request)
    bodies.refuse_unknown(given, ("lease",))
    lease = _duration(given, "lease")
    if lease is None:
        raise InvalidField("lease must be a duration, not missing or null")
    checked(lambda: _queue(queue).extend(receipt, lease))
    return render.json_response({"lease": lease})


def api_dead_letters(queue: str) -> Response:
    """GET: a page of dead letters, the newest first."""
    for name in request.args:
        if name not in ("limit", "cursor"):
            raise InvalidField(f"there is no parameter {name}", hint="known: limit, cursor")
    text = request.args.get("limit", str(DEAD_SHOWN))
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_DEAD:
        raise InvalidField(f"limit must be a whole number from 1 to {MOST_DEAD}")
    limit, cursor = int(text), request.args.get("cursor")
    before = None if cursor is None else place_of(cursor)
    found = list_dead_messages(database_of(queue), queue, before=before, limit=limit + 1)
    shown = found[:limit]
    return render.json_response({"items": [_dead_letter(each) for each in shown], "next": cursor_of(shown) if len(found) > limit else None})


def api_redrive(queue: str) -> Response:
    """POST: deliver dead letters again, those of `ids` or all."""
    ids = _ids(_optional_body(("ids",)))
    return render.json_response({"redriven": _queue(queue).dead.redrive(ids)})


def api_purge_dead(queue: str) -> Response:
    """POST: remove dead letters for good, those of `ids` or all."""
    ids = _ids(_optional_body(("ids",)))
    return render.json_response({"purged": _queue(queue).dead.purge(ids)})


def _queue(name: str) -> MessageQueue:
    """The queue, to change something of it: for some seconds this process reads from the primary."""
    board = dashboard()
    found: MessageQueue = checked(lambda: board.jobs.queue(name))
    board.reads.wrote()
    return found


def database_of(queue: str) -> Database:
    """Where to read of a queue: as the pages do, or in the other database that it lives in. A row may have any name."""
    if "\0" in queue:
        raise InvalidField("a queue's name has no NUL character")
    board = dashboard()
    home = board.jobs.branch_of(queue)
    found: Database = board.reads() if home is board.jobs else home.database
    return found


def checked(call: Callable[[], Any]) -> Any:
    """What is out of range is the client's mistake, not one of the set-up."""
    try:
        return call()
    except ConfigurationError as error:
        raise InvalidField(str(error), hint=error.hint) from error


def _optional_body(known: tuple[str, ...]) -> dict[str, Any]:
    if not request.content_length and "Transfer-Encoding" not in request.headers:
        return {}
    given = bodies.json_object(request)
    bodies.refuse_unknown(given, known)
    return given


def _duration(given: dict[str, Any], name: str) -> float | str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, (int, float, str)) or isinstance(value, bool)):
        raise InvalidField(f"{name} must be a number of seconds, or text such as 90s or 1h30m")
    return value


def _ids(given: dict[str, Any]) -> list[int] | None:
    ids = given.get("ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(each, int) and not isinstance(each, bool) and 0 < each < 2**63 for each in ids):
        raise InvalidField("ids must be an array of ids")
    return ids


def cursor_of(shown: Sequence[DeadMessage]) -> str:
    """What leads on from the last of these."""
    return f"{serial.instant(shown[-1].died_at)}{CURSOR_BETWEEN}{shown[-1].id}"


def place_of(cursor: str) -> tuple[datetime, int]:
    """The dead letter in a cursor: when it died, and its id. Raises InvalidField."""
    instant, _, last = cursor.partition(CURSOR_BETWEEN)
    if not last.isascii() or not last.isdecimal() or len(last) > MOST_DIGITS or not 0 < int(last) < 2**63:
        raise InvalidField("the cursor is not one that this list gave out", hint="take `next` of an answer as it is")
    return bodies.instant(instant, "cursor"), int(last)


def _message(found: Message) -> dict[str, Any]:
    return {
        "id": found.id,
        "receipt": str(found.receipt),
        "body": found.body,
        "headers": found.headers,
        "key": found.key,
        "priority": found.priority,
        "attempt": found.attempt,
        "max_deliveries": found.max_deliveries,
        "redelivered": found.redelivered,
        "enqueued_at": serial.instant(found.enqueued_at),
        "expires_at": serial.instant(found.expires_at),
    }


def _dead_letter(found: DeadMessage) -> dict[str, Any]:
    return {
        "id": found.id,
        "body": serial.decoded(found.body),
        "headers": serial.decoded(found.headers),
        "key": found.key,
        "state": found.state,
        "reason": found.reason,
        "deliveries": found.deliveries,
        "enqueued_at": serial.instant(found.enqueued_at),
        "died_at": serial.instant(found.died_at),
    }


ROUTES = (
    Route("GET", "/queues/<queue>", api_queue, "read", api=True),
    Route("POST", "/queues/<queue>/messages", api_publish, "operate", api=True),
    Route("POST", "/queues/<queue>/pull", api_pull, "operate", api=True),
    Route("POST", "/queues/<queue>/messages/<receipt>/ack", api_ack, "operate", api=True),
    Route("POST", "/queues/<queue>/messages/<receipt>/nack", api_nack, "operate", api=True),
    Route("POST", "/queues/<queue>/messages/<receipt>/dead", api_dead, "operate", api=True),
    Route("POST", "/queues/<queue>/messages/<receipt>/extend", api_extend, "operate", api=True),
    Route("GET", "/queues/<queue>/dead", api_dead_letters, "read", api=True),
    Route("POST", "/queues/<queue>/dead/redrive", api_redrive, "operate", api=True),
    Route("POST", "/queues/<queue>/dead/purge", api_purge_dead, "admin", api=True),
)
