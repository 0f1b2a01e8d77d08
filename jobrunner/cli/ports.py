"""Owns the question whether an address can be listened on, before anything is started for it."""

from __future__ import annotations

import errno
import socket

from jobrunner.cli.failures import Code, CommandError


def require_port(host: str, port: int) -> None:
    """Raises CommandError when `host:port` cannot be listened on: 5 when it is in use, 2 for an address that is not ours."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CommandError(Code.USAGE, f"--host {host}: {error.strerror or error}") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandError(Code.BUSY, f"port {port} of {host} is in use", hint=f"try:   --port {port + 1}") from error
            raise CommandError(Code.USAGE, f"cannot listen on {host}:{port}: {error.strerror}") from error
