"""Sessions for race tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.rows import Scene
from tests.support.sessions import Sessions, sessions_on

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sessions(dsn: str) -> Iterator[Sessions]:
    """A maker of sessions, closed before the database is emptied."""
    with sessions_on(dsn) as opened:
        yield opened


@pytest.fixture
def scene(connection) -> Scene:
    """The test's own connection, which never waits for long and watches the others."""
    return Scene(connection)
