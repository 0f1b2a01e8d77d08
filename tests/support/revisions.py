"""Owns migrations directories with revisions that Jobrunner does not have, to see how an upgrade behaves in trouble.

It must not change the checkout's own `migrations/`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner import migrate
from tests.support.commands import clean_environment

if TYPE_CHECKING:
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


def directory_with(place: Path, *bodies: str) -> Path:
    """A copy of the migrations with one more revision for each body, numbered 0002 and on."""
    place = Path(shutil.copytree(ROOT / "migrations", place, ignore=shutil.ignore_patterns("__pycache__")))
    for number, body in enumerate(bodies, 2):
        text = REVISION.format(
            number=f"{number:04}", before=f"{number - 1:04}", body="\n".join(f"    {line}" for line in body.splitlines())
        )
        (place / "versions" / f"{number:04}_pre_more.py").write_text(text)
    return place


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
