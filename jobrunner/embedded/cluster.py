"""Owns a cluster's files: making them with `initdb` so that there is a whole cluster or none, and removing them.

It must not start a server; the caller holds the cluster's lock.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from typing import TYPE_CHECKING

from jobrunner.embedded.account import OTHER_DATABASE, require_passwd_entry
from jobrunner.embedded.binaries import major_of, version_of
from jobrunner.embedded.process import is_there
from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jobrunner.embedded.account import Account

PASSWORD_FILE = "jobrunner.password"  # noqa: S105 - the name of the file inside the cluster, not a password
"""Holds the superuser's password for 127.0.0.1, mode 0600: other users of the machine reach the port, so trust is not for it."""

_BUILDING, _REMOVING = "init", "gone"
_BUILTIN_LOCALES_SINCE = 17
_PASSWORD_BYTES = 24
_ERROR_LINES = 15


def has_cluster(data_dir: Path) -> bool:
    """Whether the directory holds a cluster (made whole, because it got its name last)."""
    return is_there(data_dir / "PG_VERSION")


def data_major(data_dir: Path) -> int | None:
    """The major version that made the cluster, None when there is no cluster."""
    try:
        return int((data_dir / "PG_VERSION").read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise EmbeddedError(f"cannot read {data_dir / 'PG_VERSION'}: {error}", hint=OTHER_DATABASE) from error


def make_cluster(data_dir: Path, binaries: Path, account: Account, superuser: str, *, durable: bool) -> None:
    """Run `initdb` under a temporary name beside `data_dir`, then rename: a crash half-way leaves no half-made cluster.

    Args:
        data_dir: missing or an empty directory.
        binaries: where `initdb` is; it must be runnable by `account`.
        account: who shall own the cluster.
        superuser: the role to create; local connections as it are trusted, TCP connections need the password file.
        durable: False skips the fsync of the new files, for clusters that run with `fsync=off`.

    Raises:
        EmbeddedError: the directory has something else in it, the account has no name, or initdb failed.

    """
    if data_dir.exists() and any(data_dir.iterdir()):
        raise EmbeddedError(f"{data_dir} is not empty and not a PostgreSQL cluster", hint="name a new or an empty directory")
    require_passwd_entry(account)
    building = _temporary(data_dir, _BUILDING)
    try:
        password = building / "password"
        _write_private(password, secrets.token_urlsafe(_PASSWORD_BYTES), account)
        _give(building, account)
        settings = [f"--username={superuser}", f"--pwfile={password}", *([] if durable else ["--no-sync"])]
        _initdb(binaries, account, building / "data", settings)
        password.rename(building / "data" / PASSWORD_FILE)
        _publish(building / "data", data_dir)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def remove_cluster(data_dir: Path) -> None:
    """Remove a stopped cluster: renamed first, so that a crash half-way leaves no half a cluster under its name."""
    if not data_dir.exists():
        return
    grave = _temporary(data_dir, _REMOVING)
    data_dir.rename(grave / "data")
    shutil.rmtree(grave)


def remove_leftovers(data_dir: Path) -> None:
    """Remove what a crashed `make_cluster` or `remove_cluster` left beside the data directory."""
    for kind in (_BUILDING, _REMOVING):
        prefix = f"{data_dir.name}.{kind}-"
        for entry in os.scandir(data_dir.parent):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)  # an orphaned initdb may still be writing; the next start sweeps again


def _temporary(data_dir: Path, kind: str) -> Path:
    try:
        return data_dir.parent / tempfile.mkdtemp(prefix=f"{data_dir.name}.{kind}-", dir=data_dir.parent)
    except OSError as error:
        raise EmbeddedError(
            f"cannot write to {data_dir.parent}: {error.strerror}",
            hint=f"set JOBRUNNER_EMBEDDED_DIR to a directory you can write to, or {OTHER_DATABASE}",
        ) from error


def _write_private(path: Path, text: str, account: Account) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        if account.drops:
            os.fchown(file.fileno(), account.uid, account.gid)


def _initdb(binaries: Path, account: Account, target: Path, settings: list[str]) -> None:
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        target,
        *settings,
        *("--auth-local=trust", "--auth-host=scram-sha-256"),  # the socket is in a 0700 directory, the port is open to all users
        *("--encoding=UTF8", "--data-checksums", "--no-instructions", "--locale=C"),
    ]
    if major_of(version_of(binaries)) >= _BUILTIN_LOCALES_SINCE:
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    answer = account.run(command)
    if answer.returncode:
        said = "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-_ERROR_LINES:])
        raise EmbeddedError(
            f"initdb could not make a cluster in {target.parent.parent} (exit {answer.returncode}):\n{said}", hint=OTHER_DATABASE
        )


def _give(directory: Path, account: Account) -> None:
    with _opened(directory) as fd:  # by descriptor: the owner of the directory above could swap the name for a link
        if account.drops:
            os.fchown(fd, account.uid, account.gid)


def _publish(made: Path, data_dir: Path) -> None:
    try:
        made.rename(data_dir)
    except OSError as error:
        raise EmbeddedError(
            f"cannot give the new cluster its name {data_dir}: {error.strerror}",
            hint="a mount point cannot be a data directory: name a directory below it",
        ) from error
    with _opened(data_dir.parent) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
