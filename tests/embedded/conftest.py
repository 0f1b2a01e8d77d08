"""A home and a project directory that other users of the machine can reach."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobrunner.embedded import (
    Server,
    account,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every user can enter (pytest's own are closed); the clusters in it are destroyed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="jobrunner-embedded-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for control in list(path.rglob("pg_control")):
        Server(control.parents[1]).destroy()
    shutil.rmtree(path)


@pytest.fixture
def project(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project directory; root's clusters are kept below `home` instead of /var/lib."""
    monkeypatch.setattr(account, "STATE_DIR", home / "state")
    monkeypatch.delenv("JOBRUNNER_EMBEDDED_DIR", raising=False)
    path = home / "project"
    path.mkdir()
    return path
