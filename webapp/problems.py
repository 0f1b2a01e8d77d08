"""Owns the way of an error to the client: one table from the error tree to RFC 9457, and the errors that only HTTP has.

It must not let out a traceback, a password or a row of somebody who may not see it: what is not in the table is "internal error".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException

from jobrunner.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    DuplicateJob,
    EnqueueError,
    GroupNotFound,
    IllegalTransition,
    InvalidCursor,
    InvalidFilter,
    InvalidPayload,
    JobNotFound,
    JobrunnerError,
    LeaseLost,
    QueryTimeout,
    SchemaError,
    UnknownTask,
)

if TYPE_CHECKING:
    from .context import Role

INTERNAL = 500
TYPE_PREFIX = "urn:jobrunner:problem:"


class RequestError(JobrunnerError):
    """A request that HTTP itself makes wrong."""


class MalformedBody(RequestError):
    """The body is not one JSON object."""


class NotJson(RequestError):
    """The body is not declared as JSON."""

    def __init__(self, mimetype: str) -> None:
        super().__init__(f"the body is declared as {mimetype or 'nothing'}", hint="send Content-Type: application/json")


class BodyTooLarge(RequestError):
    """The body is larger than a request may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit:,} bytes", hint="store the data and pass its id or path")


class InvalidField(RequestError):
    """A field of the body is missing, unknown or of the wrong type."""


class Unauthenticated(RequestError):
    """The check asks for credentials."""

    def __init__(self, challenge: str) -> None:
        super().__init__("who are you? This needs a user and a password")
        self.challenge = challenge


class Forbidden(RequestError):
    """The request has no role, or one that is too small.

    Attributes:
        closed: nobody configured a check; the page then says how to.
    """

    def __init__(self, *, closed: bool = False, role: Role | None = None, needed: Role | None = None, read_only: bool = False) -> None:
        if closed:
            text, hint = (
                "the dashboard is closed: no access check is configured",
                "see docs/how-to/dashboard.md, or use `jobrunner web` on this machine",
            )
        elif read_only:
            text, hint = "this dashboard is read-only", "JOBRUNNER_READ_ONLY or read_only=True is set"
        elif role is not None:
            text, hint = f"this needs the role {needed}; yours is {role}", ""
        else:
            text, hint = "you have no access to this dashboard", ""
        super().__init__(text, hint=hint)
        self.closed = closed


class ForgedRequest(RequestError):
    """A change that may come from a page of another site."""

    def __init__(self, *, api: bool) -> None:
        hint = (
            "programs: send Content-Type: application/json or a bearer token"
            if api
            else "open the page again; behind a proxy, pass the Host header on"
        )
        super().__init__("the request does not come from this site's own pages", hint=hint)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told, in the members of RFC 9457 plus `hint`."""

    status: int
    slug: str
    title: str
    detail: str
    hint: str = ""

    @property
    def type(self) -> str:
        """The URI that names the kind of problem."""
        return TYPE_PREFIX + self.slug

    def as_json(self) -> dict[str, object]:
        """The members, without an empty hint."""
        members: dict[str, object] = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return {**members, "hint": self.hint} if self.hint else members


# The first class that fits counts. docs/reference/http-api.md lists the same rows; a test compares them.
TABLE: tuple[tuple[type[Exception], int, str, str], ...] = (
    (MalformedBody, 400, "malformed-body", "The body is not a JSON object"),
    (InvalidFilter, 400, "invalid-filter", "The filter cannot be read"),
    (InvalidCursor, 400, "invalid-cursor", "The cursor cannot be read"),
    (Unauthenticated, 401, "unauthenticated", "Credentials are needed"),
    (Forbidden, 403, "forbidden", "No access"),
    (ForgedRequest, 403, "forged-request", "The request may be forged"),
    (JobNotFound, 404, "job-not-found", "No such job"),
    (GroupNotFound, 404, "group-not-found", "No such group"),
    (IllegalTransition, 409, "illegal-transition", "The job's state does not allow this"),
    (LeaseLost, 409, "lease-lost", "The lease is over"),
    (DuplicateJob, 409, "duplicate-job", "A job with this unique key is there already"),
    (BodyTooLarge, 413, "body-too-large", "The body is too large"),
    (NotJson, 415, "not-json", "The body must be JSON"),
    (InvalidField, 422, "invalid-field", "A field has no valid value"),
    (UnknownTask, 422, "unknown-task", "The task is not registered"),
    (InvalidPayload, 422, "invalid-arguments", "The arguments do not fit"),
    (EnqueueError, 422, "enqueue-refused", "The job was refused"),
    (QueryTimeout, 503, "query-timeout", "The question takes too long"),
    (DatabaseUnreachable, 503, "database-unreachable", "The database does not answer"),
    (SchemaError, 503, "schema-mismatch", "The database schema does not fit this program"),
    (ConfigurationError, INTERNAL, "configuration", "The dashboard is set up wrongly"),
)


def problem_of(error: Exception) -> Problem:
    """What a client is told about an error."""
    if isinstance(error, HTTPException):
        status = error.code or INTERNAL
        return Problem(status, f"http-{status}", error.name, error.description or error.name)
    for kind, status, slug, title in TABLE:
        if isinstance(error, kind):
            detail = str(error) if status != INTERNAL else "see the log of the web server"
            return Problem(status, slug, title, detail, getattr(error, "hint", "") if status != INTERNAL else "")
    return Problem(INTERNAL, "internal", "Internal error", "something went wrong here; it has been logged")
