"""Owns turning values into responses: the templates' environment, the words and numbers people read, the frame around pages.

It must not read the database. The environment is our own: a host application's Jinja settings (no escaping, other filters,
a `base.html` of its own) do not reach the dashboard.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from flask import Response, g, request, url_for
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobrunner import filters
from jobrunner.errors import InvalidFilter
from jobrunner.inspection import ago

from .context import dashboard
from .problems import Forbidden, Problem

HERE = Path(__file__).parent
NAVIGATION = (
    ("jobs", "Jobs"), ("queues", "Queues"), ("topics", "Topics"), ("dead_letters", "Dead letters"), ("workers", "Workers"),
)  # fmt: skip
FORMS = {"redrive": "dead_letters", "resume": "topics"}  # endpoint of a form → of the page that it is on
_ICON_FILL = {
    "red": "c01c28", "orange": "ad4500", "yellow": "826000", "green": "18713a", "blue": "0a58ca", "purple": "7440cf", "gray": "59636f",
}  # fmt: skip


def json_response(data: dict[str, Any], status: int = 200) -> Response:
    """A JSON document."""
    return Response(json.dumps(data, allow_nan=False) + "\n", status, mimetype="application/json")


def problem_json(problem: Problem) -> Response:
    """A problem as RFC 9457 wants it."""
    return Response(json.dumps(problem.as_json()) + "\n", problem.status, mimetype="application/problem+json")


def problem_page(problem: Problem, error: Exception) -> str:
    """A problem as a page in the frame; needs no database."""
    closed = isinstance(error, Forbidden) and error.closed
    template = "forbidden.html" if closed else "problem.html"
    return page(template, problem=problem, back=_referring_page())


def page(template: str, **values: Any) -> str:
    """A template in the frame. `pulse` and `replica` among the values feed banner and footer; without them there is neither."""
    board = dashboard()
    frame = {
        "badge": board.badge,
        "version": board.version,
        "role": g.get("jobrunner_role"),
        "read_only": board.read_only,
        "navigation": NAVIGATION,
        "here": here(),
        "pulse": None,
        "replica": None,
        "icon": _favicon(board.badge.color if board.badge else "blue"),
        "target": None,
    }
    return environment().get_template(template).render({**frame, **values})


def here() -> str:
    """The endpoint of the request, without our prefix."""
    return (request.endpoint or "").rpartition(".")[2]


@cache
def environment() -> Environment:
    """The templates, always escaped, with names that must exist."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters.update(ago=ago, instant=instant, clock=clock, bytes=size, filter_term=filter_term, sentence=sentence)
    found.globals.update(url=_url, static=_static)
    return found


def instant(value: datetime) -> str:
    """An instant in UTC to the second."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def clock(value: datetime) -> str:
    """The time of day in UTC to the millisecond."""
    return f"{value.astimezone(UTC):%H:%M:%S}.{value.microsecond // 1000:03}"


def size(value: int | None) -> str:
    """Bytes in the unit that fits."""
    if value is None:
        return "–"
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:  # noqa: PLR2004  decimal, like parse_size
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" or amount >= 100 else f"{amount:.1f} {units[0]}"  # noqa: PLR2004  three digits


def sentence(text: str) -> str:
    """A message of the library as a sentence of its own."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!", ")")) else ".")


def filter_term(value: str, name: str) -> str | None:
    """The filter `name:value` as text, or None when the language cannot say this value (control characters in a name)."""
    try:
        return str(filters.exactly(name, value))
    except InvalidFilter:
        return None


def _url(endpoint: str, **values: Any) -> str:
    return url_for(f"jobrunner.{endpoint}", **{name: value for name, value in values.items() if value not in (None, "")})


def _static(name: str) -> str:
    return url_for("jobrunner.static", filename=name, v=_fingerprint(name))


@cache
def _fingerprint(name: str) -> str:
    return hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]


def _favicon(color: str) -> str:
    fill = _ICON_FILL[color]
    return (
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
        f"%3Crect width='16' height='16' rx='3' fill='%23{fill}'/%3E%3Cpath d='M6 4l5 4-5 4z' fill='white'/%3E%3C/svg%3E"
    )


def _referring_page() -> str:
    """Where "back" leads: what the failed form belonged to, else the list."""
    job_id = (request.view_args or {}).get("job_id")
    if request.method == "POST" and here() in FORMS:
        return _url(FORMS[here()])
    wanted = request.method == "POST" and isinstance(job_id, str) and job_id.isdecimal()
    return _url("job", job_id=job_id) if wanted else _url("jobs")
