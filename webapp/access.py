"""Owns who may do what: roles, the closed default, ready-made checks, and the defence against forged requests.

It must not open by accident: without a check of the user's own only a browser on this very machine gets in, and only into a
server that we bound to loopback ourselves.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from flask import current_app
from werkzeug.security import check_password_hash

from jobrunner.errors import ConfigurationError

from .context import Role
from .problems import Forbidden, ForgedRequest, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Collection

    from flask import Request

    from .context import Auth, Dashboard

PASSWORD_VARIABLE = "JOBRUNNER_WEB_PASSWORD"  # noqa: S105  the variable's name
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# Any of these means that somebody stands between the browser and us: then "from this machine" says nothing.
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")


def allows(role: Role | None, needed: Role) -> bool:
    """Whether a role includes another."""
    return role is not None and ROLES.index(role) >= ROLES.index(needed)


def role_of(request: Request, dashboard: Dashboard) -> Role | None:
    """What the request may do; None is nothing. A check that fails or answers nonsense lets nobody in.

    Raises:
        ConfigurationError: `auth` gave something that is no role.
    """
    role = _default(request, dashboard) if dashboard.auth is None else dashboard.auth(request)
    if role is not None and role not in ROLES:
        raise ConfigurationError(f"auth returned {role!r}: expected None or one of {', '.join(ROLES)}")
    return "read" if role is not None and dashboard.read_only else role


def check(request: Request, dashboard: Dashboard, needed: Role, *, api: bool) -> Role:
    """The request's role, when it may do what needs `needed`.

    Raises:
        Unauthenticated: the check asks for credentials.
        Forbidden: no access, or a role that is too small.
        ForgedRequest: a change that may come from another site's page.
    """
    role = role_of(request, dashboard)
    if role is None:
        challenge = getattr(dashboard.auth, "challenge", None)
        raise Unauthenticated(challenge) if isinstance(challenge, str) else Forbidden(closed=dashboard.auth is None)
    if not allows(role, needed):
        raise Forbidden(role=role, needed=needed, read_only=dashboard.read_only)
    if request.method not in SAFE_METHODS and not is_own_request(request, api=api):
        raise ForgedRequest(api=api)
    return role


def is_own_request(request: Request, *, api: bool) -> bool:
    """Whether a change was asked for by our own page or by a program, not by a page of another site.

    Browsers say where a request comes from in `Sec-Fetch-Site`, older ones and plain http in `Origin` or `Referer`. Programs say
    none of it: for them a bearer token or a JSON body is enough, because a page of another site can send neither unasked.
    HTTP Basic is no such proof: browsers add it to forged requests as well.
    """
    if api and request.headers.get("Authorization", "").lower().startswith("bearer "):
        return True
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    for header in ("Origin", "Referer"):
        value = request.headers.get(header)
        if value is not None:
            return _same_host(value, request)
    return api and request.mimetype == "application/json"


def basic_auth(user: str, password_hash: str | None = None, *, password_env: str = PASSWORD_VARIABLE, role: Role = "admin") -> Auth:
    """HTTP Basic for one user. See `jobrunner.web.basic_auth`."""
    return _BasicAuth(user, password_hash, password_env, role)


def localhost_only(role: Role = "admin") -> Auth:
    """Browsers on this machine. See `jobrunner.web.localhost_only`."""

    def auth(request: Request) -> Role | None:
        return role if is_local(request) else None

    return auth


def header(
    name: str,
    *,
    roles: dict[str, Role] | None = None,
    role: Role = "read",
    proxies: Collection[str] = ("127.0.0.1", "::1"),
    hosts: Collection[str] = (),
) -> Auth:
    """A user named by a reverse proxy. See `jobrunner.web.header`."""
    trusted = frozenset(str(ipaddress.ip_address(proxy)) for proxy in proxies)

    def auth(request: Request) -> Role | None:
        values = request.headers.getlist(name)
        # Two values: the proxy added its own behind one that the client sent.
        if len(values) != 1 or not values[0] or _peer(request) not in trusted:
            return None
        if hosts and request.host.lower() not in {host.lower() for host in hosts}:
            return None
        return role if roles is None else roles.get(values[0])

    return auth


def is_local(request: Request) -> bool:
    """Whether a browser on this machine asks for this machine, with nobody in between.

    The Host matters as much as the address: a page of another site can let its name resolve to 127.0.0.1 (DNS rebinding), and
    then its script talks to us from a loopback address, but under its own name.
    """
    if not _is_loopback(_peer(request)) or not _is_loopback_host(request.headers.get("Host", "")):
        return False
    if any(name in request.headers for name in PROXY_HEADERS):
        return False
    # A proxy without a word in the headers: nginx as it comes speaks HTTP/1.0 to us, which no browser does, and puts our own name
    # into Host, while the browser's Origin has the public one.
    if request.environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        return False
    origin = request.headers.get("Origin")
    if origin is None and request.headers.get("Sec-Fetch-Site") == "same-origin":
        origin = request.headers.get("Referer")
    return origin is None or _same_host(origin, request)


def _default(request: Request, dashboard: Dashboard) -> Role | None:
    return "admin" if (dashboard.served_locally or current_app.debug) and is_local(request) else None


class _BasicAuth:
    """The check behind `basic_auth`."""

    challenge = 'Basic realm="jobrunner", charset="UTF-8"'

    def __init__(self, user: str, password_hash: str | None, password_env: str, role: Role) -> None:
        password = os.environ.get(password_env) if password_hash is None else None
        if password_hash is None and not password:
            raise ConfigurationError(
                f"basic_auth({user!r}): no password: {password_env} is not set",
                hint=f"set {password_env}, or pass password_hash=… made by werkzeug.security.generate_password_hash",
            )
        if role not in ROLES:
            raise ConfigurationError(f"basic_auth(role={role!r}): expected one of {', '.join(ROLES)}")
        self._user, self._hash, self._role = user, password_hash, role
        self._key = secrets.token_bytes(32)
        # Digests under a key of this process: a password hash is slow on purpose, too slow for every request.
        self._good = self._digest(password) if password else None

    def __call__(self, request: Request) -> Role | None:
        given = request.authorization
        if given is None or given.type != "basic" or given.username is None or given.password is None:
            return None
        right_user = hmac.compare_digest(given.username.encode(), self._user.encode())
        return self._role if self._right_password(given.password) and right_user else None

    def _right_password(self, password: str) -> bool:
        digest = self._digest(password)
        if self._good is not None and hmac.compare_digest(digest, self._good):
            return True
        if self._hash is not None and check_password_hash(self._hash, password):
            self._good = digest
            return True
        return False

    def _digest(self, password: str) -> bytes:
        return hmac.new(self._key, password.encode(), hashlib.sha256).digest()


def _peer(request: Request) -> str:
    """The address at the other end of the connection, whatever ProxyFix made of it."""
    original = request.environ.get("werkzeug.proxy_fix.orig")
    address = (original or {}).get("REMOTE_ADDR") if isinstance(original, dict) else None
    try:
        parsed = ipaddress.ip_address(address or request.environ.get("REMOTE_ADDR") or "")
    except ValueError:  # a Unix socket has none
        return ""
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_loopback_host(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or _is_loopback(name)


def _same_host(url: str, request: Request) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if default is None or not parts.hostname:
        return False
    ours = urlsplit(f"//{request.host}")
    # A proxy may speak https to the browser and http to us, so the scheme may differ and either default port is fine.
    return parts.hostname == ours.hostname and (port or default) in ({ours.port} if ours.port else {80, 443})
