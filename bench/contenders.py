"""Owns the adapters' processes: starts one in its peer's environment, asks it things, and runs the worker processes that it names.

It must not know any peer. The conversation is `bench/peers/shared/protocol.py`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bench.accounts import Ledger
from bench.environments import PEERS, Absent, Peer, python_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.servers import Servers

SHARED = PEERS / "shared"
TERM_PATIENCE = 10.0  # seconds from SIGTERM until a worker is killed
TAIL = 1500  # characters of what a process said last, in an error

if str(SHARED) not in sys.path:
    sys.path.insert(0, str(SHARED))

import marks  # noqa: E402  after the path


class Broken(Exception):
    """An adapter or a worker of a contender failed; the message has what it said."""


class Workers:
    """Running worker processes."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], log: Path, described: str) -> None:
        self.processes = processes
        self.log = log
        self.described = described

    @property
    def pids(self) -> list[int]:
        """The roots of their trees."""
        return [process.pid for process in self.processes]

    def check(self) -> None:
        """Raise Broken when one has ended."""
        for process in self.processes:
            if process.poll() is not None:
                said = self.log.read_text(errors="replace")[-TAIL:]
                raise Broken(f"a worker ended with {process.returncode}: {' '.join(map(str, process.args))}\n{said}")  # type: ignore[arg-type]


class Contender:
    """One adapter process, with a database (or a number in Redis) of its own.

    Args:
        peer: who.
        servers: what it may use.
        database: name of its database; another for each thing that has to stay prepared while others run.
        number: of its Redis database.
        more: variables that its adapter, and through it its workers, are given.
    """

    def __init__(self, peer: Peer, servers: Servers, database: str, number: int, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self.peer = peer
        self.servers = servers
        self.database = database
        self.marks = Path(tempfile.mkdtemp(prefix=f"marks-{peer.name}-", dir=servers.directory))
        dsn = servers.database(database)
        self.env = os.environ | {
            "BENCH_DSN": dsn,
            "BENCH_WORKER_DSN": servers.for_workers(dsn),
            "BENCH_MARKS": str(self.marks),
            "BENCH_REDIS": servers.redis(number) if peer.server == "redis" else "",
            "JOBRUNNER_DSN": dsn,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, (SHARED, peer.shared, peer.adapter.parent)))),
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }
        self.env.pop("PYTHONHOME", None)
        self.log = servers.directory / f"{database}.log"
        self.command = [python_of(peer), str(peer.adapter)]
        self.process = self._start()
        try:
            self.ask("prepare")
            self.versions: dict[str, str] = self.ask("versions")
        except BaseException:
            self.end()
            raise
        self.ledger = Ledger(servers.admin, database)

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self.env, cwd=self.peer.adapter.parent
            )

    def ask(self, do: str, **parameters: Any) -> Any:
        """The adapter's answer.

        Raises:
            Absent: the peer has no such thing; the reason is the adapter's.
            Broken: it failed.
        """
        return self.take(self.send(do, **parameters))

    def send(self, do: str, **parameters: Any) -> str:
        """Ask without waiting; `take` waits."""
        if self.process.stdin is None:
            raise Broken(f"{self.peer.title}: closed")
        try:
            self.process.stdin.write(json.dumps({"do": do, **parameters}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `take` says what it died of
        return do

    def take(self, what: str) -> Any:
        """The answer to what was sent."""
        line = self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            raise Broken(f"{self.peer.title}: its adapter ended while asked to {what}:\n{self._said()}")
        answer = json.loads(line)
        if "unsupported" in answer:
            raise Absent(answer["unsupported"])
        if "error" in answer:
            raise Broken(f"{self.peer.title}: {what}: {answer['error']}\n{self._said()}")
        return answer["answer"]

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-TAIL:]

    @contextlib.contextmanager
    def workers(self, setting: str, slots: int = 0) -> Iterator[Workers]:
        """Start the worker processes of a setting; SIGTERM, and SIGKILL to their groups when they take too long."""
        named = self.ask("workers", setting=setting, slots=slots)
        log = self.servers.directory / f"{self.database}-workers.log"
        processes: list[subprocess.Popen[bytes]] = []
        try:
            with log.open("wb") as out:
                for command in named["commands"]:
                    worker_dsn = self.env["BENCH_WORKER_DSN"]
                    env = self.env | {"BENCH_DSN": worker_dsn, "JOBRUNNER_DSN": worker_dsn} | named["env"]
                    processes.append(
                        subprocess.Popen(command, env=env, cwd=self.peer.adapter.parent, stdout=out, stderr=out, start_new_session=True)
                    )
            yield Workers(processes, log, named["described"])
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(TERM_PATIENCE)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def pids(self) -> list[int]:
        """The server that it uses."""
        return self.servers.pids(self.peer.server)

    @contextlib.contextmanager
    def second(self) -> Iterator[Contender]:
        """Another adapter process for the same queue, to enqueue while this one is asked for something else."""
        other = copy.copy(self)
        other.process = self._start()
        try:
            other.ask("prepare")
            yield other
        finally:
            other.end()

    def sizes(self) -> dict[str, int]:
        """What has been stamped by now, for `stamped` to leave out."""
        return marks.sizes(self.marks)

    def stamped(self, skipped: dict[str, int]) -> list[float]:
        """Pickup latencies since then, in seconds."""
        return marks.stamped(self.marks, skipped)

    def counted(self) -> marks.Counted:
        """What its tasks have run since `clear`."""
        return marks.counted(self.marks)

    def clear(self) -> None:
        """Empty queue and marks."""
        self.ask("empty")
        marks.clear(self.marks)

    def close(self) -> None:
        """End the adapter and free its space."""
        self.end()
        self.servers.drop(self.database)

    def end(self) -> None:
        """End the adapter."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.process.wait(TERM_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
