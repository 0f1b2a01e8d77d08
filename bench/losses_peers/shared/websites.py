"""Owns what contenders inside a web server have in common: gunicorn on a socket, and the requests by which it is asked for jobs."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from contending import Contender

if TYPE_CHECKING:
    from pathlib import Path

PROCESSES = 2
PATIENCE = 30.0  # seconds for the server to listen, and for an answer
LOOK = 0.05  # seconds


class _Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class Website(Contender):
    """`gunicorn -w 2 site:app`; a job is enqueued by a request of its own, as a user's click does it."""

    @property
    def socket(self) -> Path:
        """Where gunicorn listens."""
        return self.directory / "web.sock"

    def command(self) -> list[str]:
        """Gunicorn with its default kind of worker."""
        return [sys.executable, "-m", "gunicorn", "--workers", str(PROCESSES), "--bind", f"unix:{self.socket}", "site_app:app"]

    def environment(self) -> dict[str, str]:
        """Nothing that runs on this machine in somebody else's name is met: no lock and no socket is shared."""
        return {"TMPDIR": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)}

    def now(self, numbers: list[int], seconds: float) -> None:
        """POST /now."""
        for number in numbers:
            self.post("/now", number=number, seconds=seconds)

    def rolled_back(self, numbers: list[int]) -> None:
        """POST /rolled-back."""
        for number in numbers:
            self.post("/rolled-back", number=number)

    def post(self, path: str, **data: Any) -> None:
        """A request, repeated until the server listens; any answer but 200 is an error."""
        end = time.monotonic() + PATIENCE
        while True:
            connection = _Connection(self.socket)
            try:
                connection.connect()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK)
        try:
            connection.request("POST", path, json.dumps(data), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"POST {path}: {answer.status} {os.fsdecode(text)[:500]}")
