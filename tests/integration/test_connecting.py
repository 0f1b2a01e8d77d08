"""Connections of our own, and what is said when there is none: against a real server that asks for passwords."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

from jobrunner.connecting import connect, explain
from jobrunner.embedded import Server
from jobrunner.errors import ConfigurationError, DatabaseUnreachable
from jobrunner.settings import Dsn, parse_dsn
from tests.support import postgres as pg

SECRET = "5ecret/of@shop"
ROLES = """
CREATE ROLE shop LOGIN PASSWORD '5ecret/of@shop';
CREATE ROLE batch NOLOGIN PASSWORD '5ecret/of@shop';
CREATE ROLE locked LOGIN PASSWORD '5ecret/of@shop';
CREATE ROLE peer_only LOGIN;
CREATE ROLE narrow LOGIN PASSWORD '5ecret/of@shop' CONNECTION LIMIT 0;
CREATE DATABASE closed;
REVOKE CONNECT ON DATABASE closed FROM PUBLIC;
"""
HBA = """
local all postgres trust
local all peer_only peer
host all locked 127.0.0.1/32 reject
hostssl all tls_only 127.0.0.1/32 scram-sha-256
host all tls_only 127.0.0.1/32 reject
host all shop,batch,narrow,nobody 127.0.0.1/32 scram-sha-256
host all postgres 127.0.0.1/32 scram-sha-256
"""


def free_port() -> int:
    """A TCP port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def strict():
    """A server on TCP that asks for passwords, with four connections for ordinary users."""
    directory = pg.disk_directory()
    options = {**pg.FAST, "max_connections": "7", "superuser_reserved_connections": "3"}
    own = Server(directory / "pg", binaries=pg.given_binaries(), port=free_port(), options=options)
    try:
        with psycopg.connect(own.start(), autocommit=True) as connection:
            for statement in ROLES.strip().splitlines():
                connection.execute(statement)
        (own.data_dir / "pg_hba.conf").write_text(HBA)
        own.stop()
        own.start()
        yield own
    finally:
        own.destroy()
        shutil.rmtree(directory, ignore_errors=True)


def address(server: Server, user: str = "shop", password: str | None = SECRET, database: str = "postgres", options: str = "") -> Dsn:
    """An address on the strict server."""
    secret = "" if password is None else ":" + quote(password, safe="")
    return parse_dsn(f"postgresql://{user}{secret}@127.0.0.1:{server.port}/{database}{options}", "JOBRUNNER_DSN")


def refused(dsn: Dsn, **options: Any) -> DatabaseUnreachable:
    """The error of an attempt to connect, after a look that neither it nor its causes hold the password."""
    with pytest.raises(DatabaseUnreachable) as caught:
        connect(dsn, **options)
    error = caught.value
    assert error.origin == dsn.origin
    assert str(error) == f"cannot reach PostgreSQL at {dsn.target} ({error.reason})"
    told = " ".join([str(error), repr(error), error.hint, str(error.__cause__)])
    assert SECRET not in told
    assert quote(SECRET, safe="") not in told
    return error


def test_connect_opens_in_autocommit_and_keeps_no_prepared_statement(strict):
    """A connection is in autocommit mode, prepares nothing, and is called by its name in pg_stat_activity."""
    with connect(address(strict), application_name="jobrunner-test") as connection:
        assert connection.autocommit
        assert connection.prepare_threshold is None
        assert connection.execute("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone() == (
            "jobrunner-test",
        )


def test_time_outs_and_keepalives_are_ours_unless_the_address_has_its_own(strict):
    """The address goes before our defaults; the caller's options go before both."""

    def parameters(dsn: Dsn, **options: Any) -> dict[str, str]:
        with connect(dsn, **options) as connection:
            found = {option.keyword.decode(): (option.val or b"").decode() for option in connection.pgconn.info}
        return {name: found[name] for name in ("connect_timeout", "keepalives_idle", "tcp_user_timeout")}

    assert parameters(address(strict)) == {"connect_timeout": "10", "keepalives_idle": "5", "tcp_user_timeout": "15000"}
    own = address(strict, options="?connect_timeout=3&keepalives_idle=77")
    assert parameters(own) == {"connect_timeout": "3", "keepalives_idle": "77", "tcp_user_timeout": "15000"}
    assert parameters(own, connect_timeout=4)["connect_timeout"] == "4"


@pytest.mark.parametrize(
    ("change", "reason", "hint"),
    [
        ({"password": "wrong"}, "password refused", "~/.pgpass"),
        ({"password": None}, "it asks for a password and the address has none", "postgresql://user:password@host/database"),
        ({"user": "nobody"}, "password refused", "~/.pgpass"),
        ({"user": "batch"}, "the user may not log in", "ALTER ROLE batch LOGIN"),
        ({"user": "locked"}, "the server does not let this host or user in", "pg_hba.conf"),
        ({"user": "unlisted"}, "the server lets nobody in without TLS", "sslmode=require"),
        ({"database": "not there"}, "no such database", "try:   createdb -h 127.0.0.1 -p {port} --owner shop 'not there'"),
        ({"database": "closed"}, "the user may not connect to this database", "GRANT CONNECT ON DATABASE closed TO shop"),
        ({"user": "narrow"}, "too many connections", "max_connections"),
        ({"options": "?sslmode=require"}, "TLS refused: server does not support SSL, but SSL was required", "sslmode"),
    ],
)
def test_a_refusal_is_said_in_words(strict, change, reason, hint):
    """What the server refuses is told with its reason and one thing to do."""
    change = {**change, "database": quote(change.get("database", "postgres"))}
    error = refused(address(strict, **change))
    assert error.reason == reason
    assert hint.format(port=strict.port) in error.hint


def test_socket_refusals_are_said_in_words(strict, tmp_path):
    """On a Unix socket: a missing server, a missing role, a role of another system user."""
    nowhere = parse_dsn(f"postgresql:///postgres?host={tmp_path}&user=shop", "--dsn")
    assert refused(nowhere).reason == "no server on that socket"
    assert refused(nowhere).hint == f"try:   pg_isready -h {tmp_path}"
    here = strict.dsn("postgres").replace("postgresql://postgres@", "postgresql://peer_only@")
    assert refused(parse_dsn(here, "--dsn")).reason == 'login refused: Peer authentication failed for user "peer_only"'


def test_a_missing_role_is_named_where_no_password_is_asked(server):
    """A server that trusts its host says that the role does not exist, and so do we."""
    dsn = parse_dsn(psycopg.conninfo.make_conninfo(server.admin_dsn, user="not_there"), "--dsn")
    error = refused(dsn)
    assert error.reason == "no such user"
    assert error.hint.endswith("--login not_there")


def test_too_many_connections(strict):
    """When every slot is taken, the reason is that, not the login."""
    with contextlib.ExitStack() as taken:
        for _ in range(4):
            taken.enter_context(connect(address(strict)))
        assert refused(address(strict)).reason == "too many connections"


def test_nobody_listens(strict):
    """A port without a server is told as refused, with a command that looks."""
    port = free_port()
    error = refused(parse_dsn(f"postgresql://shop:{quote(SECRET, safe='')}@127.0.0.1:{port}/shop", "DATABASE_URL"))
    assert (error.reason, error.origin) == ("connection refused", "DATABASE_URL")
    assert error.target == f"shop@127.0.0.1:{port}/shop"
    assert error.hint == f"try:   pg_isready -h 127.0.0.1 -p {port}"


def test_unknown_host():
    """A host name that does not resolve is told as such."""
    assert refused(parse_dsn("postgresql://shop@no-such-host.invalid/shop", "--dsn")).reason == "unknown host"


def test_a_server_that_says_nothing():
    """A port that accepts and never answers ends in a time-out, not in a hang."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = refused(parse_dsn(f"postgresql://shop@127.0.0.1:{silent.getsockname()[1]}/shop", "--dsn"), connect_timeout=1)
    assert error.reason == "no answer in time"


def test_a_stopped_server_is_explained_through_sqlalchemy(strict):
    """An OperationalError of SQLAlchemy is explained like psycopg's own."""
    dsn = parse_dsn(f"postgresql://shop:pw@127.0.0.1:{free_port()}/shop", "the engine of the app")
    engine = sa.create_engine(dsn.sqlalchemy_url, poolclass=sa.NullPool)
    with pytest.raises(sa.exc.OperationalError) as caught:
        engine.connect()
    assert explain(caught.value, dsn).reason == "connection refused"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('connection to server at "db", port 5432 failed: FATAL:  the database system is starting up', "the server is starting up"),
        ('connection to server at "db", port 5432 failed: FATAL:  the database system is shutting down', "the server is shutting down"),
        ('connection to server at "db", port 6432 failed: FATAL:  no such database: shop', "no such database"),
        ("connection to server failed: FATAL:  server login has been failing", "server login has been failing"),
        ("connection to server failed: FATAL:  query_wait_timeout", "no answer in time"),
        ("server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally", "the connection was closed"),
        ("connection to server failed: No route to host", "no route to that host"),
        ('connection to server at "db" failed: SSL error: certificate verify failed', "TLS refused: SSL error: certificate verify failed"),
        ("connection to server failed: FATAL:  Rolle »shop« existiert nicht", "Rolle »shop« existiert nicht"),
        ("something about 5ecret/of@shop", "something about ***"),
        ("", "OperationalError"),
    ],
)
def test_what_libpq_and_poolers_say(said, reason):
    """Sentences that a test server does not say are recognised; an unknown one is quoted, without the password."""
    dsn = parse_dsn(f"postgresql://shop:{quote(SECRET, safe='')}@db/shop", "--dsn")
    assert explain(psycopg.OperationalError(said), dsn).reason == reason


@pytest.mark.parametrize("password", ["tell/nobody", "tell@nobody", "tell:nobody/x"])
def test_a_password_that_is_not_encoded_is_never_shown(password):
    """An address whose password spills into host or port is refused without a word of it, and nothing is connected to."""
    dsn = parse_dsn(f"postgresql://shop:{password}@db.invalid/shop", "DATABASE_URL")
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as caught:
        connect(dsn)
    told = " ".join([str(caught.value), caught.value.hint, str(caught.value.__cause__), dsn.target, repr(dsn)])
    assert "nobody" not in told
    assert "tell" not in told
    assert "percent-encode" in caught.value.hint


def test_a_wrong_password_on_the_command_line(strict):
    """`jobrunner status` with a wrong password ends with 3, says where the address came from and what to do, and shows no password."""
    wrong = "not-the-" + SECRET.partition("/")[0]
    given = address(strict, password=wrong)
    environment = {**os.environ, "JOBRUNNER_DSN": given.url}
    said = subprocess.run([sys.executable, "-m", "jobrunner", "status"], capture_output=True, text=True, env=environment, check=False)
    assert (said.returncode, said.stdout) == (3, "")
    lines = said.stderr.splitlines()
    assert lines[0] == f"error: cannot reach PostgreSQL at 127.0.0.1:{strict.port} (password refused)"
    assert lines[1] == "  tried: JOBRUNNER_DSN · user shop · database postgres"
    assert "~/.pgpass" in lines[2]
    assert lines[2].endswith("[exit 3]")
    assert wrong not in said.stderr
