"""Owns the environments of the peers: what an adapter's header asks for, and a virtual environment below `.bench/` that has it.

It must not install anything outside `.bench/`. The header is inline script metadata (PEP 723): Python, pinned requirements, and in
`[tool.bench]` title, server and durability. An adapter without requirements runs in the checkout's own environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from tools import environment

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"
PLACE = ROOT / ".bench"
HEADER = re.compile(r"^# /// script$\s(?P<content>(?:^#(?:| .*)$\s)+?)^# ///$", re.MULTILINE)
INTERPRETERS = ("python3.14", "python3.13", "python3.12", "python3.11")
SERVERS = ("postgresql", "redis")
OWN = ("jobrunner", "bare", "pgbench")
"""Contenders that are no peers: we, and what PostgreSQL can do without us."""


class Absent(Exception):
    """A contender that cannot be measured here; the reason says what to do about it."""


class BadHeader(Exception):
    """An adapter whose header cannot be read."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What an adapter's header says, and the directory of adapters in which it stands."""

    name: str
    title: str
    server: str
    durability: str
    python: str
    requirements: tuple[str, ...]
    place: Path = PEERS

    @property
    def kind(self) -> str:
        """`ours`, `bare` or `peer`."""
        return "ours" if self.name == "jobrunner" else "bare" if self.name in OWN else "peer"

    @property
    def adapter(self) -> Path:
        """Its program."""
        return self.place / self.name / "adapter.py"

    @property
    def shared(self) -> Path:
        """What the adapters beside it have in common."""
        return self.place / "shared"

    @property
    def environment(self) -> Path:
        """Where its packages are; two places may have an adapter of the same name."""
        return PLACE / "environments" / (self.name if self.place == PEERS else f"{self.place.name}-{self.name}")


def read(file: Path) -> Peer:
    """The header of an adapter.

    Raises:
        BadHeader: it is missing, no TOML, or lacks a key; the message names file and key.
    """
    found = HEADER.search(file.read_text())
    if found is None:
        raise BadHeader(f"{file}: no '# /// script' header; see the other adapters")
    try:
        header = tomllib.loads(
            "".join(line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines(keepends=True))
        )
        bench = header["tool"]["bench"]
        peer = Peer(
            file.parent.name,
            bench["title"],
            bench["server"],
            bench["durability"],
            header["requires-python"],
            tuple(header.get("dependencies", ())),
            file.parent.parent,
        )
    except tomllib.TOMLDecodeError as error:
        raise BadHeader(f"{file}: the header is no TOML: {error}") from None
    except KeyError as error:
        raise BadHeader(f"{file}: the header lacks {error}") from None
    if peer.server not in SERVERS:
        raise BadHeader(f"{file}: server = {peer.server!r}; expected one of {', '.join(SERVERS)}")
    if unpinned := [one for one in peer.requirements if "==" not in one]:
        raise BadHeader(f"{file}: not pinned: {', '.join(unpinned)}; write name==version, so that figures can be repeated")
    return peer


def peers(place: Path = PEERS) -> dict[str, Peer]:
    """All contenders by name: ours first, then the bare ones, then the peers."""
    found = {file.parent.name: read(file) for file in sorted(place.glob("*/adapter.py"))}
    return {name: found[name] for name in [*(own for own in OWN if own in found), *(name for name in found if name not in OWN)]}


def interpreter(wanted: str) -> str:
    """A Python that starts and that the specifier allows: the one that runs this, else the newest on PATH or of pyenv.

    Raises:
        Absent: there is none.
    """
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = [path for name in INTERPRETERS if (path := shutil.which(name))]
    candidates = [sys.executable, *found, *(str(path) for path in sorted(versions.glob("3.*/bin/python"), reverse=True))]
    for candidate in candidates:
        probe = [candidate, "-c", "import platform; print(platform.python_version())"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() in SpecifierSet(wanted):
            return candidate
    raise Absent(f"needs Python {wanted}, which is not here: apt-get install python{wanted.lstrip('>=')}, or with pyenv")


def python_of(peer: Peer) -> str:
    """The interpreter of a contender's environment, which is made, or made anew when its header has changed.

    Raises:
        Absent: no fitting Python, or the packages cannot be installed.
    """
    if not peer.requirements:
        return sys.executable
    directory = peer.environment
    stamp = directory / ".bench.stamp"
    wanted = hashlib.sha256(repr((peer.python, peer.requirements)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and environment.usable(directory):
        return str(environment.interpreter(directory))
    python = interpreter(peer.python)
    print(f"bench: making {directory.relative_to(ROOT)} ({', '.join(peer.requirements)})", file=sys.stderr, flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        environment.make(directory, python)
        environment.install(directory, list(peer.requirements))
    except subprocess.CalledProcessError as failed:
        shutil.rmtree(directory, ignore_errors=True)
        raise Absent(
            f"its packages could not be installed: pip install {' '.join(peer.requirements)} ended with {failed.returncode}"
        ) from None
    stamp.write_text(wanted)
    return str(environment.interpreter(directory))
