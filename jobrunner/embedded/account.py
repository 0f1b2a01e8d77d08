"""Owns the account that a cluster's processes run as: which one it is, and how to run a command as it.

It must not change the mode or owner of a directory that it did not make: where one is closed, it says which and to whom.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STATE_DIR = Path("/var/lib/jobrunner")
"""Where root keeps clusters and copies of binaries; made with mode 0755 so that the cluster's account can pass."""

OPEN_DIRECTORY_MODE = 0o755
"""Mode of directories that root makes above a cluster; the cluster itself is 0700."""

OTHER_DATABASE = "set JOBRUNNER_DSN to a PostgreSQL that is already running"
_DROP_TARGETS = ("postgres", "nobody")
_FIRST_CLOSED = 'for d in "$@"; do [ -x "$d" ] || { printf "%s" "$d"; exit 1; }; done'


@dataclass(frozen=True, slots=True)
class Account:
    """The user that owns a cluster and runs its processes; `drops` when we are root and must become it."""

    uid: int
    gid: int
    name: str
    drops: bool

    def run(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = (), detached: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as this account, with a clean environment, in `/`, and return its output.

        Args:
            argv: the command; never a shell string.
            env: variables to add to `clean_environment()`.
            pass_fds: file descriptors the command inherits besides stdin (empty), stdout and stderr (captured).
            detached: in a session of its own, where the terminal's Ctrl-C and hang-up do not reach it.

        Raises:
            EmbeddedError: the command could not be started, or we may not become this account.

        """
        try:
            return subprocess.run(
                [str(part) for part in argv],
                env=clean_environment() | dict(env or {}),
                cwd="/",  # initdb fails in a working directory that the account cannot enter: test_root_runs_it_unprivileged
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                pass_fds=tuple(pass_fds),
                start_new_session=detached,
                user=self.uid if self.drops else None,
                group=self.gid if self.drops else None,
                extra_groups=[] if self.drops else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            whom = f" as user {self.name}" if self.drops else ""
            raise EmbeddedError(f"cannot run {argv[0]}{whom}: {error}", hint=OTHER_DATABASE) from error

    def require_way_to(self, directory: Path, purpose: str) -> None:
        """Raise EmbeddedError naming the first directory on the way to `directory` that this account cannot enter."""
        if (closed := self._first_closed(directory)) is None:
            return
        info = closed.stat()
        raise EmbeddedError(
            f"directory {closed} (mode {stat.S_IMODE(info.st_mode):04o}, owner {user_name(info.st_uid)}) is closed to user"
            f" {self.name}, who has to reach {purpose} below it; Jobrunner does not change the mode of other people's directories",
            hint=f"set JOBRUNNER_EMBEDDED_DIR to a directory that {self.name} can enter, or {OTHER_DATABASE}",
        )

    def _first_closed(self, directory: Path) -> Path | None:
        if not self.drops:
            return None
        ways = [*reversed(directory.parents), directory]
        # asked from the account itself, because ACLs and capabilities make the mode bits an unreliable witness
        answer = self.run(["/bin/sh", "-c", _FIRST_CLOSED, "sh", *ways])
        return Path(answer.stdout) if answer.returncode else None


def clean_environment() -> dict[str, str]:
    """The environment without what would change how PostgreSQL behaves: `PG*`, `LC_*`, `LANG`, `LANGUAGE`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_")) and name not in {"LANG", "LANGUAGE"}}


def account_for(data_dir: Path) -> Account:
    """The account for a cluster: ourselves, or for root the data directory's owner, else `postgres`, else `nobody`.

    Raises:
        EmbeddedError: the directory is somebody else's, or root has no account to become.

    """
    uid = os.geteuid()
    owner = _owner(data_dir)
    if uid == 0:
        return _drop_target(owner)
    if owner is not None and owner != uid:
        raise EmbeddedError(
            f"the data directory {data_dir} belongs to user {user_name(owner)}, not to {user_name(uid)}",
            hint=f"run as {user_name(owner)}, set JOBRUNNER_EMBEDDED_DIR to a directory of your own, or {OTHER_DATABASE}",
        )
    return Account(uid, os.getegid(), user_name(uid), drops=False)


def require_passwd_entry(account: Account) -> None:
    """Raise EmbeddedError for a uid that the system has no name for: `initdb` refuses it (usual on OpenShift)."""
    try:
        pwd.getpwuid(account.uid)
    except KeyError:
        raise EmbeddedError(
            f"user id {account.uid} has no passwd entry, and PostgreSQL's initdb refuses to make a cluster for such a user",
            hint=f"{OTHER_DATABASE}, or give the user id a name (a line in /etc/passwd, nss_wrapper, `runAsUser` of a known user)",
        ) from None


def user_name(uid: int) -> str:
    """The account's name, or its number when it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def make_parents(directory: Path) -> None:
    """Make `directory` and what is missing above it; as root with mode 0755 whatever the umask. Existing ones stay as they are.

    Raises:
        EmbeddedError: a directory could not be made.

    """
    for path in (*reversed(directory.parents), directory):
        try:
            if not path.exists():
                path.mkdir()
                if os.geteuid() == 0:
                    path.chmod(OPEN_DIRECTORY_MODE)
        except FileExistsError:
            continue  # another starter made it, with its own mode
        except OSError as error:
            raise EmbeddedError(
                f"cannot make the directory {path}: {error.strerror}",
                hint=f"set JOBRUNNER_EMBEDDED_DIR to a directory you can write to, or {OTHER_DATABASE}",
            ) from error


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EmbeddedError(f"cannot look at {path}: {error.strerror}", hint=OTHER_DATABASE) from error


def _drop_target(owner: int | None) -> Account:
    if owner:
        try:
            return _dropping(pwd.getpwuid(owner))
        except KeyError:
            return Account(owner, owner, str(owner), drops=True)  # an existing cluster can be started without a name
    for name in _DROP_TARGETS:
        with contextlib.suppress(KeyError):
            return _dropping(pwd.getpwnam(name))
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and there is no account {' or '.join(_DROP_TARGETS)} to run it as",
        hint=f"run as an ordinary user, or {OTHER_DATABASE}",
    )


def _dropping(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, drops=True)
