"""Owns calling the program in tests: one command line, what it said, its exit code; through pipes or on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.commands import clean_environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SECONDS = 60  # no command of a test takes a tenth of it; a hang ends here

APP = textwrap.dedent(
    """
    import asyncio
    import pathlib
    import time

    from flask import Flask
    from jobrunner import Cancel, Fail, JobRunner, Retry, Snooze, current_job

    print("the app is imported")
    app = Flask(__name__)
    jobs = JobRunner(app)


    @app.get("/")
    def index():
        return "hello from the app"


    @jobs.task
    def add(a: int, b: int) -> int:
        print("adding")
        return a + b


    @jobs.task(max_attempts=1, queue="mail")
    def divide(a: int, b: int) -> float:
        return a / b


    @jobs.task
    async def later(word: str = "nothing") -> str:
        await asyncio.sleep(0)
        return f"{word} from job {current_job().id}"


    @jobs.task
    def control(what: str):
        raise {"retry": Retry("soon", delay=30), "snooze": Snooze(5), "cancel": Cancel("gone"), "fail": Fail("no such user")}[what]


    @jobs.task
    def hold(started: str, release: str):
        pathlib.Path(started).touch()
        while not pathlib.Path(release).exists():
            time.sleep(0.01)
    """
)


@dataclass(frozen=True)
class Said:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        try:
            return json.loads(self.out)
        except json.JSONDecodeError as error:
            raise AssertionError(f"exit {self.code} without one document: {error}\n{self.out}\n{self.err}") from error

    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.out.splitlines()


class Program:
    """`python -m jobrunner` in a directory, with a database.

    Args:
        home: working directory.
        dsn: becomes `JOBRUNNER_DSN`; None leaves it out.
        argv: another way to call it.
    """

    def __init__(self, home: Path, dsn: str | None, argv: tuple[str, ...] = ("-m", "jobrunner")) -> None:
        self.home = home
        self.dsn = dsn
        self.argv = argv

    def environment(self, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """Nothing of the developer's, and this database."""
        return clean_environment() | ({"JOBRUNNER_DSN": self.dsn} if self.dsn else {}) | dict(given or {})

    def __call__(self, *arguments: object, stdin: str = "", env: Mapping[str, str] | None = None, ok: bool | None = True) -> Said:
        """Run to the end. `ok` fails the test on an exit code other than 0; None takes any."""
        done = subprocess.run(
            [sys.executable, *self.argv, *map(str, arguments)],
            cwd=self.home, env=self.environment(env), input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        said = Said(done.returncode, done.stdout, done.stderr)
        assert not ok or said.code == 0, f"exit {said.code} of {' '.join(map(str, arguments))}\n{said.out}\n{said.err}"
        return said

    @contextlib.contextmanager
    def started(self, *arguments: object, env: Mapping[str, str] | None = None) -> Iterator[Running]:
        """Run beside the test; killed at the end if it still runs."""
        out, err = self.home / f"{os.urandom(4).hex()}.out", self.home / f"{os.urandom(4).hex()}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [sys.executable, *self.argv, *map(str, arguments)],
                cwd=self.home, env=self.environment(env), stdin=subprocess.DEVNULL, stdout=out_file, stderr=err_file,
            )  # fmt: skip
        try:
            yield Running(process, out, err)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def on_terminal(self, *arguments: object, env: Mapping[str, str] | None = None, keys: str = "", columns: int = 120) -> tuple[int, str]:
        """Run with stdin, stdout and stderr on a terminal. Returns exit code and everything shown."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = self.environment({"TERM": "xterm-256color"} | dict(env or {}))
        process = subprocess.Popen(
            [sys.executable, *self.argv, *map(str, arguments)], cwd=self.home, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        os.write(ours, keys.encode())
        shown = b""
        with contextlib.suppress(OSError):  # a terminal without a program behind it answers EIO
            while data := os.read(ours, 65_536):
                shown += data
        os.close(ours)
        return process.wait(SECONDS), shown.decode().replace("\r\n", "\n")


@dataclass(frozen=True)
class Running:
    """A command that runs beside the test."""

    process: subprocess.Popen[bytes]
    out_path: Path
    err_path: Path

    @property
    def out(self) -> str:
        """What it has printed on stdout."""
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        """What it has printed on stderr."""
        return self.err_path.read_text()

    def wait_for(self, text: str) -> None:
        """Until it has printed `text`, on either stream."""

        def shown() -> bool:
            return text in self.out + self.err or self.process.poll() is not None

        wait_until(shown, timeout=SECONDS, what=f"the command prints {text!r}")
        assert text in self.out + self.err, f"it ended with {self.process.poll()} without {text!r}:\n{self.out}\n{self.err}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)
