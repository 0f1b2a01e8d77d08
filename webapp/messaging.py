"""Owns the pages of topics and of dead letters, and the forms that let a group go on and have dead letters delivered again.

It must not compute what `inspection` knows, nor write on GET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import make_response, redirect, request, url_for

from jobrunner.filters import MAX_ID
from jobrunner.inspection import list_dead_messages, list_topics

from .context import dashboard
from .pages import framed
from .problems import InvalidField
from .queues import checked, cursor_of, database_of, place_of
from .routes import Route

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.wrappers import Response as BaseResponse

SHOWN = 50  # dead letters of one page
WIDTH = 400  # characters of a body
NOTICES = {
    "resumed": "The group goes on where it was: it gets the same events again.",
    "going": "The group had not stopped: nothing was changed.",
}


def topics() -> Response:
    """GET: topics, the groups that are subscribed to them, and how far each is behind."""
    reads = dashboard().reads()
    return make_response(framed("topics.html", rows=list_topics(reads), reads=reads, notice=NOTICES.get(request.args.get("done", ""))))


def resume() -> BaseResponse:
    """POST: let a group that has stopped go on, then back to the topics."""
    board = dashboard()
    topic, group = _field("topic"), _field("group")
    goes_on = checked(lambda: board.jobs.topic(topic).resume(group))
    board.reads.wrote()
    return redirect(url_for("jobrunner.topics", done="resumed" if goes_on else "going"), 303)


def dead_letters() -> Response:
    """GET: messages that are not delivered any more, the newest first; of one queue, or of all."""
    queue, cursor = request.args.get("queue") or None, request.args.get("cursor") or None
    before = None if cursor is None else place_of(cursor)
    reads = dashboard().reads()
    source = reads if queue is None else database_of(queue)
    found = list_dead_messages(source, queue, before=before, limit=SHOWN + 1, width=WIDTH)
    shown, count = found[:SHOWN], request.args.get("done", "")
    return make_response(
        framed(
            "dead_letters.html",
            rows=shown,
            queue=queue,
            following=cursor_of(shown) if len(found) > SHOWN else None,
            first=cursor is None,
            redriven=int(count) if count.isascii() and count.isdecimal() and len(count) < len(str(MAX_ID)) else None,
            reads=reads,
        )
    )


def redrive() -> BaseResponse:
    """POST: have dead letters of a queue delivered again, one or all, then back to them."""
    board, queue, given = dashboard(), _field("queue"), request.form.get("id", "")
    if not given.isascii() or not given.isdecimal() or len(given) > len(str(MAX_ID)) or not 0 < int(given) <= MAX_ID:
        if given != "all":
            raise InvalidField("id must be that of a dead letter, or all")
        ids = None
    else:
        ids = [int(given)]
    count = checked(lambda: board.jobs.queue(queue)).dead.redrive(ids)
    board.reads.wrote()
    return redirect(url_for("jobrunner.dead_letters", queue=request.form.get("back") or None, done=count), 303)


def _field(name: str) -> str:
    value = request.form.get(name, "")
    if not value or "\0" in value:
        raise InvalidField(f"{name} has a NUL character" if value else f"{name} is missing")
    return value


ROUTES = (
    Route("GET", "/topics", topics, "read", api=False),
    Route("POST", "/topics/resume", resume, "operate", api=False),
    Route("GET", "/dead-letters", dead_letters, "read", api=False),
    Route("POST", "/dead-letters/redrive", redrive, "operate", api=False),
)
