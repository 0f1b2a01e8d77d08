"""Owns the pages of jobs, queues and workers: what each shows, and the two forms that change a job.

It must not compute what `inspection` knows, nor write on GET.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flask import Response, make_response, redirect, request, url_for

from jobrunner import filters
from jobrunner.errors import InvalidFilter
from jobrunner.filters import STATE_WORDS, JobFilter
from jobrunner.inspection import Count, count_states, get_job, job_logs, list_jobs, list_queues, list_workers, pulse

from . import render
from .context import dashboard
from .routes import Route, job_id_of
from .timeline import timeline
from .tracebacks import blocks

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as BaseResponse

    from jobrunner.filters import StateWord

LOG_LINES = 200  # of a job, on its page; the API and the command line have the others
NOTICES = {
    "retried": "The job is due: the next free worker takes it.",
    "cancelled": "The job is cancelled.",
    "requested": "The worker was asked to stop the job; it looks once a second.",
}


def home() -> BaseResponse:
    """GET: the list is the first page."""
    return redirect(url_for("jobrunner.jobs"))


def jobs() -> Response:
    """GET: a page of jobs with filter box and state tabs."""
    text = request.args.get("filter", "")
    reads = dashboard().reads()
    try:
        wanted = filters.parse(text)
    except InvalidFilter as error:
        # The box keeps what was typed: the message stands beside it.
        tabs = _tabs(JobFilter(), {})
        return make_response(framed("jobs.html", filter_text=text, error=error, found=None, tabs=tabs, reads=reads), 400)
    found = list_jobs(reads, filter=wanted, cursor=request.args.get("cursor") or None)
    tabs = _tabs(wanted, count_states(reads, wanted))
    return make_response(framed("jobs.html", filter_text=str(wanted), error=None, found=found, tabs=tabs, reads=reads, wanted=wanted))


def job(job_id: str) -> Response:
    """GET: everything about one job."""
    board = dashboard()
    detail = get_job(board.reads(), job_id_of(job_id))
    log = job_logs(board.reads(), detail, tail=LOG_LINES)
    notice = NOTICES.get(request.args.get("done", ""))
    values: dict[str, Any] = {"detail": detail, "job": detail.job, "segments": timeline(detail), "blocks": blocks, "notice": notice}
    return make_response(framed("job.html", reads=board.reads(), log=log, **values))


def retry(job_id: str) -> BaseResponse:
    """POST: retry, then back to the job."""
    board = dashboard()
    board.jobs.job(job_id_of(job_id)).retry()
    board.reads.wrote()
    return redirect(url_for("jobrunner.job", job_id=job_id, done="retried"), 303)


def cancel(job_id: str) -> BaseResponse:
    """POST: cancel, then back to the job."""
    board = dashboard()
    answer = board.jobs.job(job_id_of(job_id)).cancel()
    board.reads.wrote()
    return redirect(url_for("jobrunner.job", job_id=job_id, done=answer), 303)


def queues() -> Response:
    """GET: queues with what waits and who listens."""
    reads = dashboard().reads()
    return make_response(framed("queues.html", rows=list_queues(reads), reads=reads))


def workers() -> Response:
    """GET: workers, the live ones first."""
    reads = dashboard().reads()
    return make_response(framed("workers.html", rows=list_workers(reads), reads=reads))


def framed(template: str, *, reads: Any, **values: Any) -> str:
    """A page with its frame, which shows the pulse of the database that was read."""
    found, replica = pulse(reads), dashboard().reads.standing()
    if replica is not None and replica.used:
        found = dataclasses.replace(found, read_only=False)  # changes go to the primary
    return render.page(template, pulse=found, target=reads.dsn.target, replica=replica, **values)


def _tabs(wanted: JobFilter, counts: dict[StateWord, Count | None]) -> list[dict[str, Any]]:
    """The tabs: every state, and all of them; a state's tab keeps the other terms of the filter."""
    known = [count for count in counts.values() if count is not None]
    everything = (
        Count(sum(count.value for count in known), exact=all(count.exact for count in known)) if len(known) == len(STATE_WORDS) else None
    )
    only = next(iter(wanted.states)) if len(wanted.states) == 1 and not wanted.not_states else None
    tabs = [
        {"word": "all", "filter": str(wanted.without_states()), "count": everything, "here": not wanted.states and not wanted.not_states}
    ]
    tabs += [
        {"word": word, "filter": str(wanted.with_state(word)), "count": counts.get(word), "here": word == only} for word in STATE_WORDS
    ]
    return tabs


ROUTES = (
    Route("GET", "/", home, "read", api=False),
    Route("GET", "/jobs", jobs, "read", api=False),
    Route("GET", "/jobs/<job_id>", job, "read", api=False),
    Route("POST", "/jobs/<job_id>/retry", retry, "operate", api=False),
    Route("POST", "/jobs/<job_id>/cancel", cancel, "operate", api=False),
    Route("GET", "/queues", queues, "read", api=False),
    Route("GET", "/workers", workers, "read", api=False),
)
