"""Owns serving the dashboard from our own process: one socket, a thread pool, clear refusals.

It must not be what a production site needs more of (TLS, many processes): any WSGI server runs `jobrunner.web:create_app()`.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, cast

from waitress.server import create_server

from jobrunner.errors import ConfigurationError

from .bodies import MAX_BODY
from .context import EXTENSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from .context import Dashboard

THREADS = 8  # each holds at most one connection; the pool has four, so some may wait, none starves
LAST_PORT = 65_535
LARGEST_REQUEST = 2 * MAX_BODY  # cut off by the server; between the limits the app answers 413 in its own words


def serve(app: Flask, host: str, port: int, on_ready: Callable[[str], None] | None = None) -> None:
    """See `jobrunner.web.serve`."""
    board = cast("Dashboard", app.extensions[EXTENSION])
    local = _is_loopback(host)
    if not local and board.auth is None:
        raise ConfigurationError(
            f"refusing to serve the dashboard on {host}: whoever reaches this machine could cancel and start jobs",
            hint="set JOBRUNNER_WEB_PASSWORD (user: admin), pass auth=…, or bind 127.0.0.1 and use an ssh tunnel",
        )
    listener = _bind(host, port)
    board.served_locally = local
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # "Task queue depth is 1": no news for a dashboard
    try:
        # Headers of proxies are left in: `access` must see that somebody stands in between.
        server = create_server(
            app, sockets=[listener], threads=THREADS, ident=None, max_request_body_size=LARGEST_REQUEST, clear_untrusted_proxy_headers=False
        )
        if on_ready is not None:
            on_ready(url_of(host, listener.getsockname()[1]))
        server.run()
    finally:
        board.served_locally = False
        listener.close()


def url_of(host: str, port: int) -> str:
    """The address to open in a browser."""
    name = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host  # noqa: S104  compared
    return f"http://{name}:{port}/"


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= LAST_PORT:  # the C library would take it modulo 65,536
        raise ConfigurationError(f"cannot serve on port {port}: expected 0 to {LAST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"cannot serve on {host}:{port}: {error}", hint="such as --bind 127.0.0.1:8765") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise _refusal(host, port, error) from error
    return listener


def _refusal(host: str, port: int, error: Exception) -> ConfigurationError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ConfigurationError(
            f"{host}:{port} is in use by another program", hint="is a dashboard running already? Or take another port: --port 0"
        )
    if number == errno.EACCES:
        return ConfigurationError(f"no leave to bind {host}:{port}", hint="ports below 1024 belong to root: take a higher one")
    return ConfigurationError(f"cannot serve on {host}:{port}: {error}", hint="such as --bind 127.0.0.1:8765")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
