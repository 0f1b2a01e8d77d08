"""Owns running a few commands side by side: their lines with a prefix, a restart when files change, one end for all.

It must not know what the commands do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click

from jobrunner.cli.failures import Code, Terminated
from jobrunner.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL at the end
LOOK = 0.5  # seconds between looks at the files
CHUNK = 65_536  # bytes read from a child at once
LONGEST_LINE = 65_536  # bytes: longer ones are shown in pieces
IGNORED = frozenset({"node_modules", "site-packages", "venv", "__pycache__"})  # and every hidden directory


class Child:
    """One command, started as often as needed.

    Args:
        name: its prefix.
        command: program and arguments.
        color: of the prefix.
    """

    def __init__(self, name: str, command: Sequence[str], color: str) -> None:
        self.name = name
        self.command = list(command)
        self.color = color
        self.process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it in a session of its own: Ctrl-C reaches this process only, which ends its children in order."""
        self.process = subprocess.Popen(
            self.command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def lines(self, data: bytes) -> Iterator[str]:
        """Whole lines of what was read; the rest waits for more. No data means that there will be no more."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


def run_together(children: Sequence[Child], environment: Mapping[str, str], watched: Path | None) -> int:
    """Run all until one ends by itself or somebody stops them. Returns the exit code.

    Args:
        children: what to run.
        environment: of all of them.
        watched: restart all when a Python file below this directory changes; then one that ends waits for the next change.
    """
    group = _Group(children, environment)
    before = signal.signal(signal.SIGHUP, _hang_up)  # the terminal was closed
    try:
        group.start()
        return group.serve(watched)
    except (KeyboardInterrupt, Terminated):
        say("stopping …")
        return Code.OK if group.stop() else Code.TERMINATED
    finally:
        group.stop(patience=0)
        signal.signal(signal.SIGHUP, before)


class _Group:
    def __init__(self, children: Sequence[Child], environment: Mapping[str, str]) -> None:
        self.children = children
        self.environment = environment
        self.selector = selectors.DefaultSelector()
        self.width = max(len(child.name) for child in children)

    def start(self) -> None:
        for child in self.children:
            child.start(self.environment)
            self.selector.register(child.process.stdout, selectors.EVENT_READ, child)  # type: ignore[union-attr, arg-type]

    def serve(self, watched: Path | None) -> int:
        seen = _changes(watched) if watched else {}
        reloaded = False
        while True:
            self.pump(LOOK)
            if watched and (now := _changes(watched)) != seen:
                changed = sorted(str(path) for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))
                say(f"{os.path.relpath(changed[0])} changed: restarting")
                seen, reloaded = now, True
                self.stop()
                self.start()
                continue
            for child in self.children:
                code = child.process.poll() if child.process else None
                if code is None:
                    continue
                self.pump(0)
                if reloaded:
                    say(f"{child.name} ended with {code}; waiting for the next change of a file")
                    child.process = None
                    continue
                say(f"{child.name} ended with {code}: stopping")
                self.stop()
                return code if code > 0 else Code.BAD

    def pump(self, timeout: float) -> None:
        """Show what the children say."""
        for key, _ in self.selector.select(timeout):
            child: Child = key.data
            data = os.read(key.fd, CHUNK)
            prefix = click.style(f"{child.name:<{self.width}} |", fg=child.color)
            for line in child.lines(data):
                click.echo(f"{prefix} {line}")
            if not data:
                self.selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        sys.stdout.flush()

    def stop(self, patience: float = PATIENCE) -> bool:
        """Ask all to end, show their last words, kill what does not. Returns whether all ended by themselves."""
        running = [child for child in self.children if child.process is not None and child.process.poll() is None]
        for child in running:
            child.signal(signal.SIGTERM)
        ends = time.monotonic() + patience
        while any(child.process.poll() is None for child in running if child.process) and time.monotonic() < ends:
            with contextlib.suppress(KeyboardInterrupt):
                self.pump(0.05) if self.selector.get_map() else time.sleep(0.05)
        clean = all(child.process.poll() is not None for child in running if child.process)
        for child in running:
            if child.process is not None and child.process.poll() is None:
                child.signal(signal.SIGKILL)
                child.process.wait()
        while self.selector.get_map() and self.selector.select(0):
            self.pump(0)
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        for child in self.children:
            child.process = None
        return clean


def _changes(directory: Path) -> dict[str, float]:
    """Times of the Python files below a directory; libraries and hidden directories are none of the developer's code."""
    found: dict[str, float] = {}
    pending = [os.fspath(directory)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith(".") and entry.name not in IGNORED:
                            pending.append(entry.path)
                    elif entry.name.endswith(".py"):
                        found[entry.path] = entry.stat().st_mtime
    return found


def _hang_up(_number: int, _frame: object) -> None:
    raise Terminated
