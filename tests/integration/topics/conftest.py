"""Fixtures of the tests of topics: an application whose handlers keep what they get, and ways to publish beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.topics import Shop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shop(dsn) -> Iterator[Shop]:
    """An application without any subscription yet."""
    made = Shop(dsn)
    yield made
    made.jobs.close()


@pytest.fixture
def effects(connection) -> None:
    """A table of the application's own, for what transactional handlers write; goes with the test."""
    connection.execute("CREATE TABLE effects (position bigint)")
