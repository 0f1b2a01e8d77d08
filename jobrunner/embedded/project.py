"""Owns the private cluster of a project directory: where it lives, and the verbs behind `jobrunner db start|stop|status|destroy`.

It must not start anything when asked for a status, and must not know how a server is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from jobrunner.embedded import account as accounts
from jobrunner.embedded.cluster import has_cluster
from jobrunner.embedded.server import Server
from jobrunner.errors import EmbeddedError

DATABASE = "jobrunner"
DIRECTORY_VARIABLE = "JOBRUNNER_EMBEDDED_DIR"
_PROJECT_DIRECTORY = ".jobrunner"
_KEY_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What is known of a cluster without starting it.

    `dsn` is where it is or will be; `version` is empty and `binaries` None when no PostgreSQL that fits is installed.
    """

    running: bool
    pid: int | None
    dsn: str
    data_dir: Path
    version: str
    size_bytes: int
    binaries: Path | None


def project_server(project: Path | None = None) -> Server:
    """The private cluster of a project directory; nothing is made or started.

    `JOBRUNNER_EMBEDDED_DIR` names the data directory outright. Else it is `.jobrunner/pg` in the project, or in the user's data
    directory when the project cannot be written to; for root it is under `/var/lib/jobrunner`, or the project's own if only that
    exists already.

    Args:
        project: the project's directory; None for the working directory.

    """
    if explicit := os.environ.get(DIRECTORY_VARIABLE):
        return Server(Path(explicit).expanduser())
    root = (project or Path.cwd()).resolve()
    inside = root / _PROJECT_DIRECTORY / "pg"
    if os.geteuid() == 0:
        system = accounts.STATE_DIR / _key(root) / "pg"
        return Server(inside if has_cluster(inside) and not has_cluster(system) else system)
    return Server(inside if _is_ours(inside) else _user_data_dir() / "jobrunner" / _key(root) / "pg")


def start_project(project: Path | None = None) -> ClusterStatus:
    """Start the project's cluster, make it first if there is none, and make its database `jobrunner`; safe to repeat.

    Raises:
        EmbeddedError: as `Server.start`.

    """
    server = project_server(project)
    if server.data_dir.parent.name == _PROJECT_DIRECTORY and not has_cluster(server.data_dir):
        accounts.make_parents(server.data_dir.parent)
        _hide_from_git(server.data_dir.parent)
    server.start(database=DATABASE)
    return _status(server)


def stop_project(project: Path | None = None) -> bool:
    """Stop the project's cluster; False when it was not running."""
    return project_server(project).stop()


def project_status(project: Path | None = None) -> ClusterStatus:
    """Look at the project's cluster without starting or making anything."""
    return _status(project_server(project))


def destroy_project(project: Path | None = None) -> bool:
    """Stop the project's cluster and remove it with all its data; False when there was none."""
    server = project_server(project)
    existed = has_cluster(server.data_dir)
    server.destroy()
    if server.data_dir.parent.name != _PROJECT_DIRECTORY and DIRECTORY_VARIABLE not in os.environ:
        with contextlib.suppress(OSError):  # somebody keeps something else there
            server.data_dir.parent.rmdir()
    return existed


def _status(server: Server) -> ClusterStatus:
    pid = server.pid
    try:
        binaries, version = server.binaries, server.version
    except EmbeddedError:
        binaries, version = None, server.version if has_cluster(server.data_dir) else ""
    return ClusterStatus(pid is not None, pid, server.dsn(DATABASE), server.data_dir, version, _bytes_in(server.data_dir), binaries)


def _key(root: Path) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip("-.") or "root"
    return f"{readable[:32]}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:_KEY_LENGTH]}"


def _is_ours(data_dir: Path) -> bool:
    """Whether we own the cluster there, or could make one: the nearest existing directory above it can be written to."""
    try:
        if data_dir.exists():
            return data_dir.stat().st_uid == os.geteuid()
    except PermissionError:
        return False
    nearest = next(path for path in data_dir.parents if path.exists())
    return os.access(nearest, os.W_OK | os.X_OK)


def _user_data_dir() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def _hide_from_git(directory: Path) -> None:
    with contextlib.suppress(FileExistsError), (directory / ".gitignore").open("x", encoding="ascii") as file:
        file.write("*\n")


def _bytes_in(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # the server removes files while we look
                total += (Path(folder) / name).lstat().st_size
    return total
