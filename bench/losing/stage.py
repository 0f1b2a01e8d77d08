"""Owns one contender on stage: its database, its adapter, its worker's processes and its ledger; starting, killing and watching them.

It must not judge, nor know how a worker is killed: `killing` does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

from bench.contenders import TAIL, Broken, Contender
from bench.losing import killing
from bench.losing.judge import Kill, are_over
from bench.losses_peers.shared import notes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from bench.environments import Peer
    from bench.servers import Servers

LOOK = 0.1  # seconds between two looks at the ledger
LOOK_INTO_STORAGE = 1.0  # seconds between two looks into the contender's storage, which costs it something
QUIET = 3.0  # seconds without a new line, and with an empty storage, after which nothing is expected any more
PATIENCE = 60.0  # seconds for the first job of a worker that has just been started, and for the middle of the work
FIRST = 0  # the number of that job, which is not judged
DATABASE = "losses"
REDIS_NUMBER = 1
TIMEOUT = "LOSSES_TIMEOUT"
LEDGER = "LOSSES_LEDGER"  # of each Stage another one, and so what its processes are known by


class Stage:
    """A contender with a new database, and its worker; a context manager that ends both.

    Args:
        peer: who.
        servers: what it may use.
        timeout: the visibility timeout that is wanted, in seconds; None leaves the contender as it comes.
    """

    def __init__(self, peer: Peer, servers: Servers, timeout: float | None) -> None:
        self.title = peer.title
        self._directory = servers.directory / f"ledger-{peer.name}-{os.urandom(3).hex()}"
        self._directory.mkdir()
        self.ledger = self._directory / "ledger"
        more = {LEDGER: str(self.ledger), TIMEOUT: "" if timeout is None else f"{timeout:g}"}
        self.contender = Contender(peer, servers, DATABASE, REDIS_NUMBER, more)
        self._log = self._directory / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.setting: Mapping[str, Any] = self.contender.ask("set_up")
        except BaseException:
            self.contender.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.kill()
        finally:
            self.contender.close()

    @property
    def versions(self) -> dict[str, str]:
        """Of what the contender consists of."""
        return self.contender.versions

    def ask(self, do: str, **parameters: Any) -> Any:
        """As `Contender.ask`."""
        return self.contender.ask(do, **parameters)

    def start(self) -> None:
        """Start the worker."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.setting["command"],
                env=self.contender.env | self.setting["env"],
                cwd=self.contender.peer.adapter.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_and_warm_up(self) -> None:
        """Start the worker and wait until it has run a job. Raises Broken when it does not."""
        self.start()
        self.ask("now", numbers=[FIRST], seconds=0.0)
        self._wait(lambda found: any(note.event == notes.END for note in found), "run its first job")

    def kill(self) -> Kill:
        """Kill the worker and all that it has started, and wait until they are gone; when that was."""
        process, self._process = self._process, None
        if process is None:
            return Kill(0.0, 0.0)
        began = time.monotonic()
        if not killing.kill_all(process, f"{LEDGER}={self.ledger}", {self.contender.process.pid}, PATIENCE):
            raise Broken(f"{self.title}: a process of its worker cannot be killed")
        return Kill(began, time.monotonic())

    def lines(self) -> list[notes.Note]:
        """What the jobs have written, the first one's lines left out."""
        return [note for note in notes.read(self.ledger)[0] if note.number != FIRST]

    def torn(self) -> int:
        """Lines that a killed writer has not finished."""
        return notes.read(self.ledger)[1]

    def wait_for_ends(self, count: int) -> None:
        """Wait until so many jobs have ended. Raises Broken when nothing comes any more."""
        self._wait(lambda found: sum(note.event == notes.END and note.number != FIRST for note in found) >= count, f"end {count} jobs")

    def watch(self, numbers: Collection[int], seconds: float, kill: Kill | None = None) -> tuple[list[int], float]:
        """Wait until nothing is expected any more, or the time is over.

        That is when every job has ended, none runs, the storage has none of them, and the ledger is at rest.

        Returns:
            The jobs that the storage still holds, and the seconds until the last line of the ledger.
        """
        began = time.monotonic()
        end = began + seconds
        size, since, looked = -1, began, 0.0
        held: list[int] = []
        while (now := time.monotonic()) < end:
            self._check()
            found = self.ledger.stat().st_size if self.ledger.exists() else 0
            if found != size:
                size, since = found, now
            if now - since >= QUIET and now - looked >= LOOK_INTO_STORAGE and are_over(self.lines(), numbers, kill):
                held, looked = self.ask("held"), now
                if not set(held) & set(numbers):
                    break
            time.sleep(LOOK)
        # asked before the ledger is read for the last time: a job that goes from one to the other is in both
        return self.ask("held"), since - began

    def _wait(self, reached: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not reached(notes.read(self.ledger)[0]):
            self._check()
            if time.monotonic() > end:
                raise Broken(f"{self.title}: did not {what} within {PATIENCE:.0f} s\n{self._said()}")
            time.sleep(LOOK / 5)

    def _check(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            raise Broken(f"{self.title}: its worker ended with {code}\n{self._said()}")

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-TAIL:]


@contextlib.contextmanager
def staged(peer: Peer, servers: Servers, timeout: float | None = None) -> Iterator[Stage]:
    """A contender whose worker has run a first job."""
    with Stage(peer, servers, timeout) as stage:
        stage.start_and_warm_up()
        yield stage
