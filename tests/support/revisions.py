"""Owns migrations directories with revisions that Jobrunner does not have, to see how an upgrade behaves in trouble.

It must not change the checkout's own `migrations/`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner import migrate
from tests.support.commands import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    import pytest

ROOT = Path(__file__).resolve().parents[2]

REVISION = """
from alembic import op

revision = {number!r}
down_revision = {before!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
{body}


def downgrade() -> None:
    pass
"""

UPGRADE = """
import sys
from pathlib import Path
from jobrunner import migrate

if sys.argv[2:]:
    migrate.migrations_dir = lambda: Path(sys.argv[2])
print(*migrate.upgrade(sys.argv[1]))
"""


def ours() -> list[str]:
    """The revisions of the checkout, oldest first."""
    return sorted(path.name[:4] for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))


def added(count: int) -> list[str]:
    """The numbers of so many revisions behind ours."""
    return [f"{int(ours()[-1]) + number:04}" for number in range(1, count + 1)]


def directory_with(place: Path, *bodies: str) -> Path:
    """A copy of the migrations with one more revision for each body, numbered as `added` says."""
    place = Path(shutil.copytree(ROOT / "migrations", place, ignore=shutil.ignore_patterns("__pycache__")))
    before = ours()[-1]
    for number, body in zip(added(len(bodies)), bodies, strict=True):
        text = REVISION.format(number=number, before=before, body="\n".join(f"    {line}" for line in body.splitlines()))
        (place / "versions" / f"{number}_pre_more.py").write_text(text)
        before = number
    return place


@contextlib.contextmanager
def at_version(connection: psycopg.Connection[tuple[object, ...]], number: str) -> Iterator[None]:
    """The database says for the length of the block that its schema has this version; the tables stay as they are."""
    connection.execute("UPDATE jobrunner.alembic_version SET version_num = %s", (number,))
    try:
        yield
    finally:
        connection.execute("UPDATE jobrunner.alembic_version SET version_num = %s", (ours()[-1],))


def use(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let this process know these revisions, until the test ends."""
    monkeypatch.setattr(migrate, "migrations_dir", lambda: directory)
    monkeypatch.setattr(migrate, "_revisions", migrate._revisions.__wrapped__)


def start_upgrade(dsn: str, directory: Path | None = None) -> subprocess.Popen[str]:
    """An upgrade in a process of its own; it prints the revisions it ran."""
    arguments = [dsn, *([str(directory)] if directory else [])]
    return subprocess.Popen(
        [sys.executable, "-c", UPGRADE, *arguments],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
