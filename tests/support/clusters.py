"""Owns what the tests of the embedded PostgreSQL share: other users, their processes, questions to a server.

No mocks and no sleeps: what must be awaited is looked for until a deadline.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from jobrunner.embedded import (
    Server,
    process,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0
QUICK = {"fsync": "off"}
"""For clusters that no test crashes: their initdb does not sync."""
PATIENCE = 30.0
"""Seconds until a test gives up waiting; generous, because a loaded machine is slow and not wrong."""
NAMELESS_UID = 54321
STARTERS = 4
PYTHONPATH = os.pathsep.join([str(REPOSITORY), str(Path(psycopg.__file__).parents[1])])


def eventually(condition: Callable[[], bool]) -> None:
    """Look until the condition holds; fail at the deadline."""
    assert process.wait_until(condition, PATIENCE), "gave up waiting"


@functools.cache
def interpreter_for_everybody() -> str:
    """An interpreter that other users can run: ours is often below root's closed home."""
    for candidate in (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")):
        if candidate and subprocess.run(["/bin/sh", "-c", f"test -x '{candidate}'"], user=stranger(), cwd="/", check=False).returncode == 0:
            return candidate
    raise AssertionError("there is no Python of this version that other users can run")


def python(code: str, *, cwd: Path, env: Mapping[str, str] | None = None, uid: int | None = None) -> subprocess.Popen[str]:
    """Run code in an interpreter of its own, in a session of its own, as `uid` when we are root and it is given."""
    drop = uid is not None and AS_ROOT
    return subprocess.Popen(
        [
            interpreter_for_everybody() if drop else sys.executable,
            "-c",
            f"from pathlib import Path\nfrom jobrunner.embedded import *\n{code}",
        ],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1"} | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        user=uid if drop else None,
        group=uid if drop else None,
        extra_groups=[] if drop else None,
    )


def said(child: subprocess.Popen[str]) -> str:
    """What the child printed, when it ended well."""
    out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, err
    return out.strip()


def complained(child: subprocess.Popen[str]) -> str:
    """The last lines of what the child died of."""
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode != 0, "it was expected to fail"
    return err


def ask(dsn: str, query: str) -> object:
    """The first column of the first row."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row and row[0]


def setting(server: Server, name: str) -> object:
    """One setting of a running server."""
    return ask(server.dsn(), f"SHOW {name}")


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def stranger() -> int:
    """A user id that is neither ours nor that of root's servers."""
    return pwd.getpwnam("daemon").pw_uid


def owner_of(server: Server) -> int:
    """The user id that the server's processes run as."""
    return server.data_dir.stat().st_uid


def unrelated(server: Server, *command: str) -> subprocess.Popen[bytes]:
    """A process of the server's own user that has nothing to do with it."""
    return subprocess.Popen(command, user=owner_of(server) if AS_ROOT else None)


def note_pid(server: Server, pid: int) -> None:
    """Write another process id into the postmaster.pid that a killed server left behind."""
    path = server.data_dir / process.PID_FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([str(pid), *lines[1:]]) + "\n")
