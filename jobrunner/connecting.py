"""Owns opening connections of our own, and saying in words why one cannot be opened.

It must not retry (callers know how long to wait) nor print a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner.errors import DatabaseUnreachable

if TYPE_CHECKING:
    from psycopg import Connection

    from jobrunner.settings import Dsn

CONNECT_TIMEOUT = 10  # seconds
# A half-open connection (cable, NAT, failover) is noticed within about a quarter of a minute instead of hours.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}

# What libpq and the server say → the reason in our words, and what to do.
_REASONS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason, hint)
    for pattern, reason, hint in (
        ("password authentication failed", "password refused", "check the user and the password in the address"),
        ("no password supplied", "it wants a password and the address has none", "postgresql://user:password@host/database"),
        ("role .* does not exist", "no such user", "createuser NAME, or another user in the address"),
        ("database .* does not exist", "no such database", "createdb NAME, or another database in the address"),
        (r"no pg_hba\.conf entry", "the server does not let this host or user in", "pg_hba.conf on the server decides that"),
        ("too many clients|remaining connection slots", "too many connections", "raise max_connections, or use a pooler"),
        ("could not translate host name|Name or service not known|failed to resolve", "unknown host", "check the host name"),
        ("Connection refused", "connection refused", "is PostgreSQL running there?   pg_isready -d '<address>'"),
        ("No such file or directory", "no server on that socket", "is PostgreSQL running there?   pg_isready -d '<address>'"),
        ("timeout expired|timed out", "no answer in time", "check host, port and firewall"),
        ("server does not support SSL|SSL error|certificate", "TLS refused", "check sslmode in the address"),
        ("starting up|in recovery mode", "the server is starting up", "again in a moment"),
        ("shutting down", "the server is shutting down", "again in a moment"),
    )
)


def connect(dsn: Dsn, *, application_name: str = "jobrunner", **options: Any) -> Connection[Any]:
    """Open a connection in autocommit mode without prepared statements (they do not survive a transaction-mode pooler).

    Raises:
        DatabaseUnreachable: with the reason in words; never the password.
    """
    settings = {"connect_timeout": CONNECT_TIMEOUT, "application_name": application_name, **_KEEPALIVES, **options}
    try:
        return psycopg.connect(dsn.url, autocommit=True, prepare_threshold=None, **settings)
    except psycopg.OperationalError as error:
        raise explain(error, dsn) from error


def explain(error: BaseException, dsn: Dsn) -> DatabaseUnreachable:
    """What an OperationalError of psycopg or SQLAlchemy means for somebody who wanted to connect to `dsn`."""
    original = getattr(error, "orig", None) or error
    text = str(original)
    for pattern, reason, hint in _REASONS:
        if pattern.search(text):
            return DatabaseUnreachable(dsn.target, reason, origin=dsn.origin, hint=f"try:   {hint}")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(original).__name__]
    password = psycopg.conninfo.conninfo_to_dict(dsn.url).get("password")
    return DatabaseUnreachable(dsn.target, lines[-1].replace(str(password), "***") if password else lines[-1], origin=dsn.origin)
