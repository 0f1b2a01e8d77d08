"""Owns the worker's side of the template: starting it, talking to it, ending it. It must not know what the children do."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import AppImportError
from jobrunner.keeping import Rule
from jobrunner.worker import roots, wire
from jobrunner.worker.children import KILL_AFTER
from jobrunner.worker.log import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

FAREWELL = 5.0  # seconds for what an application wants done when its processes end in order; one that wants nothing takes no time


class Forking:
    """The template process of one pool.

    Attributes:
        tasks: names of all tasks of the application; `coroutines` those that are `async def`, `captured` those with `capture_output`.
        keep: what it says about how long finished jobs are kept, under the name of the application.
        declared: its subscriptions to topics; `delivering`: the tasks of those that read the log.
    """

    def __init__(self, app: str | None, dsn: str, name: str | None = None) -> None:
        """Start the template and wait for the app's import; `name` is that of the worker, when it was given one.

        Raises:
            AppImportError: the app cannot be imported; the message is the app's own error.
        """
        self.control, theirs = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
        command = [sys.executable, "-m", "jobrunner.worker.template", "--control", str(theirs.fileno()), "--parent", str(os.getpid())]
        if app:
            command += ["--app", app]
        # A session of its own: Ctrl-C in the terminal reaches the worker only, which ends its children in order.
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        try:
            wire.send_message(self.control, {"dsn": dsn, "name": name, "roots": roots.added})
            message = self.hear()
        except BaseException:  # told to stop while it imports
            self.process.kill()
            self.process.wait()
            self.close()
            raise
        if message.get("event") != "ready":
            self.process.wait()
            fallback = f"the process that imports the app ended with status {self.process.returncode} before it was ready"
            error = AppImportError(message.get("message", fallback), hint=message.get("hint", ""))
            error.add_note(message.get("traceback", ""))
            raise error
        self.tasks: Sequence[str] = message["tasks"]
        self.coroutines: Sequence[str] = message["coroutines"]
        self.captured: frozenset[str] = frozenset(message["captured"])
        self.declared: list[dict[str, Any]] = message["subscriptions"]
        self.delivering = [each["task"] for each in self.declared if each["mode"] == "log"]
        keep = message["keep"]
        self.keep: tuple[str, list[Rule]] = (
            keep["app"],
            [Rule(task, state, None if seconds is None else timedelta(seconds=seconds)) for task, state, seconds in keep["rules"]],
        )

    def say(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> bool:
        """Send one message; False when the template is gone. One datagram is atomic: any thread may call."""
        try:
            wire.send_message(self.control, message, descriptors)
        except OSError:
            return False
        return True

    def hear(self) -> dict[str, Any]:
        """The next message; empty when the template is gone."""
        try:
            return wire.receive_message(self.control)[0]
        except ConnectionError:
            return {}

    def extend_lease(self, ends: float) -> None:
        """Tell it until when its children may live."""
        if not self.say({"do": "lease", "ends": ends}):
            logger.debug("the template is gone; the main loop will see it")

    def end(self, *, in_order: bool = False) -> None:
        """End it, and with it every child; returns when they are gone.

        Args:
            in_order: the children were told to leave, and may do what the application wants done at the end of a process.
        """
        self.say({"do": "stop", "in_order": in_order})
        try:
            self.process.wait(timeout=KILL_AFTER + (FAREWELL if in_order else 0.0))
        except subprocess.TimeoutExpired:
            self.process.kill()  # the kernel ends its children
            self.process.wait()

    def close(self) -> None:
        """Close the socket, after its end."""
        with contextlib.suppress(OSError):
            self.control.close()
