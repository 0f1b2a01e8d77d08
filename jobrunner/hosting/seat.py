"""Owns the seat that one process of an application has on a host: a lock of the kernel on a file, gone the moment its holder is.

It must not wait: whoever finds it taken looks again later. No lock of the database would do: after kill -9 it would stay for a lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_REFRESH = 3600.0  # seconds: what cleans temporary directories counts in days


class Seat:
    """One seat; any number of processes may want it.

    Args:
        key: what the seat is for; becomes part of a file's name.
    """

    def __init__(self, key: str) -> None:
        self._name = f"embedded-{key}.lock"
        self._file: int | None = None
        self._refreshed = 0.0

    @property
    def taken(self) -> bool:
        """Whether this process has it."""
        return self._file is not None

    def take(self) -> bool:
        """Take it, when it is free or ours already.

        Raises:
            OSError: there is no private directory for the file.
        """
        if self._file is not None:
            return True
        path = _directory() / self._name
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file), path.lstat()):  # removed meanwhile: others will lock another file
                raise BlockingIOError  # noqa: TRY301  the same as a lock that was not to be had
        except (BlockingIOError, FileNotFoundError):
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def refresh(self, now: float) -> None:
        """Keep the file from looking forgotten. Called now and then by its holder."""
        if self._file is not None and now - self._refreshed >= _REFRESH:
            self._refreshed = now
            with contextlib.suppress(OSError):
                os.utime(self._file)

    def give_up(self) -> None:
        """Let others have it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # also where a process that is being started has a copy for a moment
        self.forget()

    def forget(self) -> None:
        """In a forked child: close the copy; the lock stays with the parent."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _directory() -> Path:
    """A directory of this user below the temporary one, which nobody else may write to."""
    directory = Path(tempfile.gettempdir()) / f"jobrunner-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise PermissionError(f"{directory} is not a private directory of user {os.geteuid()}")
    return directory
