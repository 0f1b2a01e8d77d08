"""Fixtures for the Kombu transport: connections in this process, and an application with real workers."""

from __future__ import annotations

import contextlib

import pytest
from kombu import Connection

import jobrunner.compat.kombu  # noqa: F401  what Kombu without Celery needs; the workers of these tests do without
from tests.support.celeries import Shop, url_of


@pytest.fixture
def connect(dsn):
    """Opens connections with transport options; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(address=None, **options):
            connection = Connection(address or url_of(dsn), transport_options=options)
            stack.callback(connection.release)
            return connection

        yield opened


@pytest.fixture
def shop(fresh_dsn, tmp_path):
    """Makes the application, with settings of Celery, on a database of its own."""
    with contextlib.ExitStack() as stack:

        def made(*, dsn=fresh_dsn, **settings):
            return stack.enter_context(contextlib.closing(Shop(dsn, tmp_path, **settings)))

        yield made
