"""Owns what one mounted dashboard is made of, and finding it from a request.

It must not open a connection: `reads` does, when a page first needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from flask import Request, current_app

if TYPE_CHECKING:
    from jobrunner.app import JobRunner
    from jobrunner.replicas import Reads

EXTENSION = "jobrunner-web"

Role = Literal["read", "operate", "admin"]
Auth = Callable[[Request], Role | None]
Enqueue = Callable[[str, Mapping[str, Any], Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Badge:
    """The name and colour of the environment, so that nobody cancels jobs in production by mistake."""

    name: str
    color: str


@dataclass(slots=True)
class Dashboard:
    """One mounted dashboard.

    Attributes:
        jobs: whose jobs.
        reads: the pool for reading, its own, so that many open pages cannot take the application's connections; of a replica, if any.
        enqueue: writes a job by the name of its task; gives the handle.
        auth: says what a request may do; None is the closed default.
        read_only: nobody may change anything, whatever `auth` says.
        badge: of the environment, or None.
        version: of this program, for the footer.
        served_locally: our own server bound the app to a loopback address.
    """

    jobs: JobRunner
    reads: Reads
    enqueue: Enqueue
    auth: Auth | None
    read_only: bool
    badge: Badge | None
    version: str
    served_locally: bool = False


def dashboard() -> Dashboard:
    """The dashboard that the current request is for."""
    return cast("Dashboard", current_app.extensions[EXTENSION])
