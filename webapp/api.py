"""Owns the JSON API: jobs in, jobs out, and the two probes.

It must not format errors (`problems` does) nor check rights (`access` did before the view ran).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import request, url_for

from jobrunner import filters
from jobrunner.errors import ConfigurationError, JobrunnerError, QueryTimeout, SchemaError
from jobrunner.inspection import DEFAULT_LIMIT, DEFAULT_LINES, MAX_LIMIT, MAX_LINES, count_jobs, get_job, job_logs, list_jobs, pulse

from . import access, bodies, queues, render, serial, topics
from .context import dashboard
from .problems import InvalidField, Problem, problem_of
from .routes import PUBLIC, Route, job_id_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flask import Response

OPTIONS = (
    "queue", "priority", "delay", "run_at", "unique", "max_attempts", "backoff", "backoff_base", "backoff_cap", "backoff_jitter",
    "max_crashes", "time_limit", "soft_time_limit", "cpu_limit", "memory_limit", "memory_limit_on_retry", "output_limit", "max_processes",
    "tags", "meta", "parent_id", "ordering_key", "expires_at", "ttl",
)  # fmt: skip
FIELDS = ("task", "args", "options")
PARAMETERS = ("filter", "state", "task", "queue", "cursor", "limit")
LOG_PARAMETERS = ("after", "tail", "limit", "attempt", "level")
MAX_ATTEMPT = 32_767  # of a smallint column


def api_list() -> Response:
    """GET: a page of jobs, newest first."""
    given = _parameters(PARAMETERS)
    wanted = filters.combine(given.get("filter"), state=given.get("state"), task=given.get("task"), queue=given.get("queue"))
    reads = dashboard().reads()
    found = list_jobs(reads, filter=wanted, cursor=given.get("cursor"), limit=_number(given, "limit", MAX_LIMIT) or DEFAULT_LIMIT)
    try:
        count = count_jobs(reads, wanted)
    except QueryTimeout:
        count = None  # the rows are there; their number is an extra
    return render.json_response(serial.page(found, count))


def api_enqueue() -> Response:
    """POST: write a job; 201, or 200 when `unique` found one that is there already."""
    body = bodies.json_object(request)
    bodies.refuse_unknown(body, FIELDS)
    task, args, options = bodies.text(body, "task"), bodies.mapping(body, "args"), bodies.mapping(body, "options")
    bodies.refuse_unknown(options, OPTIONS, "options.")
    for name in ("run_at", "expires_at"):
        if options.get(name) is not None:
            options[name] = bodies.instant(options[name], f"options.{name}")
    board = dashboard()
    try:
        job = board.enqueue(task, args, options)
    except ConfigurationError as error:  # a value out of range
        raise InvalidField(str(error), hint=error.hint) from error
    response = render.json_response({"id": job.id, "created": job.created, "state": job.state}, 201 if job.created else 200)
    response.headers["Location"] = url_for("jobrunner.api_show", job_id=job.id)
    return response


def api_show(job_id: str) -> Response:
    """GET: everything about one job."""
    return render.json_response(serial.detail(get_job(dashboard().reads(), job_id_of(job_id))))


def api_logs(job_id: str) -> Response:
    """GET: what the attempts of a job logged, on from a line or the newest."""
    given = _parameters(LOG_PARAMETERS)
    try:
        found = job_logs(
            dashboard().reads(),
            job_id_of(job_id),
            after=given.get("after"),
            tail=_number(given, "tail", MAX_LINES),
            limit=_number(given, "limit", MAX_LINES) or DEFAULT_LINES,
            attempt=_number(given, "attempt", MAX_ATTEMPT),
            level=given.get("level"),
        )
    except ConfigurationError as error:  # no such level; after and tail together
        raise InvalidField(str(error), hint=error.hint) from error
    return render.json_response(serial.log(found))


def api_retry(job_id: str) -> Response:
    """POST: run a job that ended without success again, or a waiting one now."""
    board, number = dashboard(), job_id_of(job_id)
    board.jobs.job(number).retry()
    board.reads.wrote()
    return render.json_response(serial.detail(get_job(board.reads(), number)))


def api_cancel(job_id: str) -> Response:
    """POST: cancel a waiting job (200), or ask a running one to stop (202)."""
    board, number = dashboard(), job_id_of(job_id)
    answer = board.jobs.job(number).cancel()
    board.reads.wrote()
    return render.json_response(serial.detail(get_job(board.reads(), number)), 202 if answer == "requested" else 200)


def healthz() -> Response:
    """GET: the process answers. Asks nothing of the database."""
    return render.json_response({"status": "ok"})


def readyz() -> Response:
    """GET: the database answers and its schema fits; 503 otherwise. Says why only to who may read."""
    board = dashboard()
    try:
        schema = board.reads.steadily(lambda: pulse(board.reads())).schema
        if not schema.up_to_date:
            state = "newer than this program knows" if not schema.known else f"{len(schema.pending)} migrations behind"
            raise SchemaError(f"the schema is at {schema.current}: {state}", hint="run:   jobrunner db upgrade")
    except JobrunnerError as error:
        problem = problem_of(error)
        if not _may_read():
            problem = Problem(503, problem.slug, problem.title, "not ready")
        return render.problem_json(problem)
    return render.json_response({"status": "ok", **({"schema": schema.current} if _may_read() else {})})


def _may_read() -> bool:
    try:
        return access.allows(access.role_of(request, dashboard()), "read")
    except Exception:  # noqa: BLE001  a broken check must not make the probe fail
        return False


def _parameters(known: Collection[str]) -> Mapping[str, str]:
    """The parameters of the request. Raises InvalidField for one that has no meaning."""
    for name in request.args:
        if name not in known:
            raise InvalidField(f"there is no parameter {name}", hint=f"known: {', '.join(known)}")
    return request.args


def _number(given: Mapping[str, str], name: str, most: int) -> int | None:
    """A parameter that is a whole number from 1; None when it is not given."""
    text = given.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise InvalidField(f"{name} must be a whole number from 1 to {most}")
    return int(text)


ROUTES = (
    Route("GET", "/jobs", api_list, "read", api=True),
    Route("POST", "/jobs", api_enqueue, "operate", api=True),
    Route("GET", "/jobs/<job_id>", api_show, "read", api=True),
    Route("GET", "/jobs/<job_id>/logs", api_logs, "read", api=True),
    Route("POST", "/jobs/<job_id>/retry", api_retry, "operate", api=True),
    Route("POST", "/jobs/<job_id>/cancel", api_cancel, "operate", api=True),
    *queues.ROUTES,
    *topics.ROUTES,
)
PROBES = (
    Route("GET", "/healthz", healthz, PUBLIC, api=True),
    Route("GET", "/readyz", readyz, PUBLIC, api=True),
)
