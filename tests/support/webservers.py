"""Owns real web servers for tests: gunicorn, `flask run`, waitress; what they answer, and the workers that they have beside them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.worker.procfs import children
from tests.support.commands import clean_environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

APP = Path(__file__).with_name("embedding_app.py")
PATIENCE = 90  # seconds, on a busy machine
MODULE = "jobrunner.cli.embedded_worker"
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")
GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:0")
FLASK = ("-m", "flask", "run", "--port", "0")


class Beside(NamedTuple):
    """An embedded worker: its supervising process, and the web process that it belongs to."""

    pid: int
    parent: int


class WebServer:
    """One command that serves an app in a directory."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.home = home
        self.process = process
        self._log = log

    @property
    def text(self) -> str:
        """What it has printed, its worker too."""
        return self._log.read_text()

    @property
    def port(self) -> int:
        """Where it listens, once it has said so."""

        def said() -> int:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text}"
            found = _PORT.search(self.text)
            return int(found[1]) if found else 0

        return wait_until(said, timeout=PATIENCE, what="the server to listen")

    def ask(self, path: str = "/", *, post: bool = False) -> Any:
        """The JSON of an answer; asked again when a process that is just ending hangs up, or one is just beginning."""
        port = self.port

        def answer() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.request("POST" if post else "GET", path)
                response = connection.getresponse()
                text = response.read()
            except (ConnectionError, http.client.HTTPException):
                return None
            finally:
                connection.close()
            assert response.status == http.HTTPStatus.OK, f"{response.status}: {text!r}\n{self.text}"
            return json.loads(text)

        return wait_until(answer, timeout=PATIENCE, what=f"an answer to {path}")

    def workers(self) -> list[Beside]:
        """The embedded workers that were started from this directory and still run, whoever their parent is by now."""
        return embedded_workers(self.home)

    def worker(self, *, but: int | None = None) -> Beside:
        """The one worker there is, in the end; `but` is the pid of an old one."""

        def alone() -> list[Beside]:
            found = [each for each in self.workers() if each.pid != but]
            return found if len(found) == 1 else []

        return wait_until(alone, timeout=PATIENCE, what="one embedded worker to be there")[0]

    def children(self) -> list[int]:
        """The server's own processes below the first one, without workers."""
        beside = {each.pid for each in self.workers()}
        return [pid for pid in children(self.process.pid) if pid not in beside]

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send a signal and wait. Returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


@contextlib.contextmanager
def serving(home: Path, *arguments: str, env: Mapping[str, str] | None = None, app: Path | None = APP) -> Iterator[WebServer]:
    """Run `python ARGUMENTS…` in a directory with the app in `shop.py`; whatever is left of it at the end is killed."""
    if app is not None:
        shutil.copyfile(app, home / "shop.py")
    log = home / f"{os.urandom(3).hex()}.log"
    private = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(home)}
    environment = clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)} | private | dict(env or {})
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    server = WebServer(home, process, log)
    try:
        yield server
        print(server.text)
    finally:
        left = [process.pid, *_below(process.pid), *(each.pid for each in server.workers())]
        for each in server.workers():
            left += _below(each.pid)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def embedded_workers(home: Path) -> list[Beside]:
    """Those that run in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text(errors="replace").split("\0")
                if MODULE in words and (entry / "cwd").readlink() == home.resolve():
                    found.append(Beside(int(entry.name), int(words[words.index("--parent") + 1])))
    return found


def python_processes(home: Path) -> list[int]:
    """Every process that runs in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == home.resolve():
                    found.append(int(entry.name))
    return found


def _below(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *_below(child))]
