"""Owns which database a broker's address means, and that its password is shown to nobody.

It must not connect.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote

from jobrunner.settings import Dsn, find_dsn, parse_dsn

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("jobrunner.kombu")

SCHEME = "jobrunner"
ORIGIN = "the broker's address"
_PASSWORD = "password="  # noqa: S105  an option of an address
_USER_PASSWORD = re.compile(r"^(?P<scheme>[a-z0-9+]+://)(?P<user>[^:@/?#]*):(?P<password>[^/?#]*)@", re.IGNORECASE)


class Client(Protocol):
    """What a `kombu.Connection` knows of its address."""

    hostname: str | None
    userid: str | None
    password: str | Callable[[], str] | None
    virtual_host: str | None
    port: int | None
    transport_options: dict[str, Any]


def hide_password(client: Client) -> None:
    """Move the password out of the address: Celery sends the address around (`inspect stats`), and the password apart, which it drops."""
    address = client.hostname or ""
    found = _USER_PASSWORD.match(address)
    if found is not None:
        client.password = unquote(found["password"])
        address = f"{found['scheme']}{found['user']}@{address[found.end() :]}"
    base, _, query = address.partition("?")
    for option in query.split("&"):
        if option.startswith(_PASSWORD):
            client.password = unquote(option.removeprefix(_PASSWORD))
            kept = "&".join(other for other in query.split("&") if not other.startswith(_PASSWORD))
            address = f"{base}?{kept}" if kept else base
    if client.hostname and address != client.hostname:
        client.hostname = address


def masked(address: str, mask: str) -> str:
    """The address for people: a password that stands in it is `mask`."""
    address = _USER_PASSWORD.sub(lambda found: f"{found['scheme']}{found['user']}:{mask}@", address)
    return re.sub(r"([?&]password=)[^&]*", lambda found: found[1] + mask, address)


def dsn_of(client: Client) -> Dsn:
    """The database of a broker's address: `jobrunner://user@host:5432/database` with the options that libpq knows.

    `jobrunner://` alone is the database that Jobrunner finds by itself: `JOBRUNNER_DSN`, `DATABASE_URL`, else the embedded PostgreSQL.
    `jobrunner+postgresql://…` is the same as `jobrunner://…`.

    Raises:
        ConfigurationError: it is no address of a PostgreSQL database.
    """
    address = client.hostname or ""
    password = client.password() if callable(client.password) else client.password
    if "://" not in address:  # what Kombu made of one of several addresses when it changed to it
        return parse_dsn(_from_parts(client, password), ORIGIN)
    scheme, _, rest = address.partition("://")
    if scheme.lower() == SCHEME and not rest.strip("/"):
        return _usual()
    url = f"postgresql://{rest}" if scheme.lower() == SCHEME else address
    if password:
        url = with_password(url, password)
    return parse_dsn(url, ORIGIN)


def _usual() -> Dsn:
    found = find_dsn()
    if found is not None:
        return found
    from jobrunner.embedded import start_project

    status = start_project()
    logger.info("no database is configured: using the embedded PostgreSQL, %s", status.dsn)
    return Dsn(str(status.dsn), "the embedded PostgreSQL")


def _from_parts(client: Client, password: str | None) -> str:
    login = quote(client.userid, safe="") if client.userid else ""
    if password:
        login += ":" + quote(password, safe="")
    place = quote(client.hostname or "", safe="") + (f":{client.port}" if client.port else "")
    database = (client.virtual_host or "").strip("/")
    return f"postgresql://{login}{'@' if login else ''}{place}/{quote(database, safe='')}"


def with_password(url: str, password: str) -> str:
    """The address with a password that `hide_password` moved out of it."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.partition("@")
    if at and "/" not in login and "?" not in login:
        return f"{scheme}://{login}:{quote(password, safe='')}@{place}"
    return url + ("&" if "?" in url else "?") + "password=" + quote(password, safe="")
