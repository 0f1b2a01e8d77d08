"""What a broker's address means, which options are taken, and that no password is shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from kombu import Connection

from jobrunner.compat.kombu.address import dsn_of
from jobrunner.compat.kombu.envelopes import envelope_of, milliseconds_of, pattern_of
from jobrunner.compat.kombu.options import Options, read_options
from jobrunner.errors import ConfigurationError, DatabaseUnreachable, SchemaMissing, SchemaOutdated
from tests.support.celeries import url_of


def address(url, **options):
    """The DSN that a connection with this address uses, and the connection."""
    connection = Connection(url, transport_options=options)
    assert connection.transport
    return dsn_of(connection).url, connection


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("jobrunner://user@host/db", "postgresql://user@host/db"),
        ("jobrunner+postgresql://user@host/db", "postgresql://user@host/db"),
        ("jobrunner+postgresql+psycopg2://user@host/db", "postgresql://user@host/db"),
        ("jobrunner://user:p%40ss@host:5433/db?sslmode=require", "postgresql://user:p%40ss@host:5433/db?sslmode=require"),
        ("jobrunner:///db?host=/run/postgresql&port=5433", "postgresql:///db?host=/run/postgresql&port=5433"),
        ("jobrunner://u@one,two/db?target_session_attrs=read-write", "postgresql://u@one,two/db?target_session_attrs=read-write"),
        ("jobrunner:///db?host=/s&password=secret&user=u", "postgresql:///db?host=/s&user=u&password=secret"),
    ],
)
def test_an_address_is_libpq_s_with_another_name(url, expected):
    """Everything but the name in front is as PostgreSQL's client library takes it."""
    assert address(url)[0] == expected


def test_a_bare_address_is_the_database_found_the_usual_way(monkeypatch):
    """`jobrunner://` alone takes JOBRUNNER_DSN, then DATABASE_URL."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://a@b/c")
    assert address("jobrunner://")[0] == "postgresql://a@b/c"
    monkeypatch.setenv("JOBRUNNER_DSN", "postgresql://d@e/f")
    assert address("jobrunner://")[0] == "postgresql://d@e/f"


def test_the_next_of_several_addresses(monkeypatch):
    """Kombu takes an alternative apart when it changes to it; it is the same database."""
    connection = Connection("jobrunner://u:one@a/x;jobrunner://v:t%2Fwo@b:5433/y")
    assert connection.transport
    connection.maybe_switch_next()
    assert connection.transport
    assert dsn_of(connection).url == "postgresql://v:t%2Fwo@b:5433/y"


@pytest.mark.parametrize("url", ["jobrunner://u:se%3Acret@h/d", "jobrunner+postgresql://u:se%3Acret@h/d", "jobrunner://h/d?user=u&password=se%3Acret"])
def test_the_password_is_not_shown(url):
    """Neither in the address for logs, nor in what a worker tells of its broker once Celery has dropped the password."""
    found, connection = address(url)
    assert "se%3Acret" in found
    told = {**connection.info(), "password": None}
    for text in (connection.as_uri(), repr(connection), str(told)):
        assert "cret" not in text
    assert "se%3Acret" in connection.as_uri(include_password=True)
    assert dsn_of(connection.clone()).url == found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Options()),
        ({"visibility_timeout": 3600, "max_retries": 3}, Options()),
        ({"lease": 2, "listen": False, "polling_interval": 0.5}, Options(timedelta(seconds=2), listen=False, poll=0.5)),
        ({"priority_order": "lowest_first"}, Options(lowest_first=True)),
    ],
)
def test_options(given, expected):
    """Ours are read; those of other transports may stay where they are."""
    assert read_options(given) == expected


@pytest.mark.parametrize("given", [{"lease": 0.1}, {"lease": "30s"}, {"listen": "no"}, {"polling_interval": 0}, {"priority_order": "asc"}, {"lease": True}])
def test_an_option_that_makes_no_sense_is_refused(given):
    """The message names the option, its value and what is expected."""
    [(name, value)] = given.items()
    with pytest.raises(ConfigurationError, match=re.escape(f"broker_transport_options[{name!r}]={value!r}: expected")):
        read_options(given)


def message(headers, **properties):
    """A message as Kombu makes it."""
    return {"body": "[]", "headers": headers, "properties": properties}


def test_what_is_read_off_a_task():
    """When it is due; not until when it is wanted, because Celery revokes it itself."""
    found = envelope_of(message({"task": "a\0b", "id": "1", "eta": "2100-01-01T02:00:00+02:00"}, expiration="100"), 4)
    assert (found.task, found.task_id, found.priority, found.ttl_ms) == ("ab", "1", 4, None)
    assert found.available_at == datetime(2100, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("eta", [None, "2100-01-01T00:00:00", "tomorrow", 5, ""])
def test_a_time_that_we_cannot_read_is_celery_s(eta):
    """A task whose time has no zone, or is none, is delivered at once: the worker knows what it means."""
    assert envelope_of(message({"task": "t", "id": "1", "eta": eta}), 0).available_at is None


@pytest.mark.parametrize(("value", "expected"), [("100", 100), (100.5, 100), (0, 0), (None, None), ("", None), ("x", None), (-1, None), (10**20, None)])
def test_the_expiration_of_other_messages(value, expected):
    """Milliseconds, as a text or a number; what makes no sense is no limit."""
    assert envelope_of(message({}, expiration=value), 0).ttl_ms == expected
    assert milliseconds_of({"x-expires": value}, "x-expires") == (expected or None)


def test_a_pattern_escapes_what_it_is_not():
    """Only the two wildcards mean something."""
    assert pattern_of("a.*") == r"^\.a\.[^.]*$"
    assert pattern_of("a(b") == r"^\.a\(b$"


def test_a_database_that_does_not_answer_is_named_without_its_password():
    """The error is one that Kombu retries, and says where it was and why."""
    connection = Connection("jobrunner://u:secret@127.0.0.1:1/d")
    with pytest.raises(DatabaseUnreachable, match=r"u@127\.0\.0\.1:1/d \(connection refused\)") as caught:
        connection.connect()
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, connection.recoverable_connection_errors)


def test_a_database_without_the_tables_says_what_to_run(empty_dsn):
    """No schema, and an older one: the error names the command."""
    from jobrunner import migrate

    with pytest.raises(SchemaMissing) as caught:
        Connection(url_of(empty_dsn)).connect()
    assert "jobrunner db upgrade" in caught.value.hint
    migrate.upgrade(empty_dsn, "0006")
    with pytest.raises(SchemaOutdated, match="0006"):
        Connection(url_of(empty_dsn)).connect()
