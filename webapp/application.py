"""Owns the blueprint: which routes there are, the checks before every one of them, the headers after.

It must not answer anything itself: `api` and `pages` do.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from jobrunner.errors import ConfigurationError
from jobrunner.inspection import translated

from . import access, api, messaging, pages, render
from .bodies import MAX_BODY
from .context import EXTENSION, dashboard
from .problems import INTERNAL, BodyTooLarge, Unauthenticated, problem_of
from .routes import PUBLIC, Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Dashboard

BLUEPRINT = "jobrunner"
API_PREFIX = "/api/v1"
STATIC = Path(__file__).parent / "static"

log = logging.getLogger("jobrunner.web")

# Exactly what the pages need: our own styles and images, forms to ourselves. Nothing inline, nothing from elsewhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: under that browsers send "Origin: null" with our own forms, and plain http has nothing else to go by.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOR_A_YEAR = "public, max-age=31536000, immutable"


def create(board: Dashboard) -> Flask:
    """A Flask application that is the dashboard and nothing else."""
    # Its static folder would be Flask's own route, without our checks.
    app = Flask("jobrunner.web", static_folder=None, template_folder=None)
    mount(app, board, url_prefix=None)
    # What matches no route belongs to us as well here.
    app.register_error_handler(Exception, _answer_error)
    app.after_request(_harden)
    return app


def mount(app: Flask, board: Dashboard, url_prefix: str | None) -> None:
    """Put the dashboard into an application. Raises ConfigurationError when it has one already."""
    if EXTENSION in app.extensions:
        raise ConfigurationError(f"the Flask app {app.name!r} has a dashboard already")
    app.extensions[EXTENSION] = board
    app.register_blueprint(_blueprint(), url_prefix=url_prefix)


def _blueprint() -> Blueprint:
    blueprint = Blueprint(BLUEPRINT, __name__, static_folder=str(STATIC), static_url_path="/static")
    for prefix, routes in (("", pages.ROUTES), ("", messaging.ROUTES), (API_PREFIX, api.ROUTES), ("", api.PROBES)):
        for route in routes:
            view = _steady(route.view) if route.method == "GET" else route.view
            blueprint.add_url_rule(prefix + route.rule, endpoint=route.view.__name__, view_func=view, methods=[route.method])
    blueprint.before_request(_guard)
    blueprint.after_request(_harden)
    blueprint.register_error_handler(Exception, _answer_error)
    return blueprint


def _steady(view: Callable[..., Any]) -> Callable[..., Any]:
    """A view that only reads, as it answers even though the replica it began to read from is gone."""

    def steady(**values: Any) -> Any:
        return dashboard().reads.steadily(lambda: view(**values))

    return steady


def route_of(endpoint: str | None) -> Route | None:
    """The route behind an endpoint of ours, or None for static files and what is not ours."""
    return _ROUTES.get(endpoint.removeprefix(f"{BLUEPRINT}.")) if endpoint and endpoint.startswith(f"{BLUEPRINT}.") else None


_ROUTES = {route.view.__name__: route for route in (*pages.ROUTES, *messaging.ROUTES, *api.ROUTES, *api.PROBES)}
_STATIC_ENDPOINT = f"{BLUEPRINT}.static"


def _guard() -> None:
    """Everything that must hold before a view runs; an endpoint that no table names is closed."""
    if (request.content_length or 0) > MAX_BODY:
        raise BodyTooLarge(MAX_BODY)
    if request.endpoint == _STATIC_ENDPOINT:
        return
    route = route_of(request.endpoint)
    needed = route.needs if route else "admin"
    if request.method == "OPTIONS" and needed != PUBLIC:
        needed = "read"  # Flask answers it with the list of methods, whatever the view is for
    if needed != PUBLIC:
        g.jobrunner_role = access.check(request, dashboard(), needed, api=_is_api())


def _is_api() -> bool:
    route = route_of(request.endpoint)
    return route.api if route else "/api/" in request.path


def _harden(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers[name] = value
    versioned = request.endpoint == _STATIC_ENDPOINT and "v" in request.args and response.status_code < 400  # noqa: PLR2004  success
    response.headers["Cache-Control"] = FOR_A_YEAR if versioned else "no-store"
    return response


def _answer_error(error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.code is not None and error.code < 400:  # noqa: PLR2004  a redirect
        return error.get_response()  # type: ignore[return-value]
    error = translated(error, dashboard().reads())
    problem = problem_of(error)
    if problem.status == INTERNAL:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
    response = render.problem_json(problem) if _is_api() else current_app.make_response(render.problem_page(problem, error))
    response.status_code = problem.status
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, HTTPException):
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
    return _harden(response)
