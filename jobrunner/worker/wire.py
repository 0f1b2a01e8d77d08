"""Owns the messages between a worker, its template and its children.

It must not hold state. A job travels as one datagram on a socket that keeps message boundaries: the child's `recv` and the
worker's `recv` on the same end compete in the kernel, so a job that the child has not begun can be taken back without a lock
and without any chance that both have it. Many short ones travel together, see `bundles`. Outcomes travel as lines of JSON on a
stream.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.jobs import ClaimedJob

OK = "ok"  # in the place of an ending: the task returned
DONE = "done"  # likewise: it is in the database already, a transactional task wrote it
MICROSECONDS = 1_000_000  # in a second; the unit in which run times are told
INLINE_LIMIT = 48_000  # bytes of a datagram; a socket buffer holds at least four of them. Larger arguments travel as an open file
SEPARATOR = b"\n"  # between the jobs of a bundle; in JSON as PostgreSQL and we write it there is none
_BUFFER = 64_000
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # programs that a job starts are not to hold what came with jobs
_IN_FILE = b"F"  # instead of a job: it is in the file that comes along
text = json.encoder.encode_basestring_ascii  # a JSON string, in one call into C
_parse = json.JSONDecoder().raw_decode
_ROOM_FOR_DESCRIPTORS = socket.CMSG_SPACE(8 * array.array("i").itemsize)
# A pair that keeps message boundaries and tells when the other side is gone; macOS has no SEQPACKET for local sockets.
JOB_SOCKET = socket.SOCK_SEQPACKET if hasattr(socket, "SOCK_SEQPACKET") and os.uname().sysname == "Linux" else socket.SOCK_DGRAM


class Assignment(NamedTuple):
    """A job as the child sees it.

    Attributes:
        time_limit_ms: milliseconds, or None.
        limits: `soft_ms`, `cpu_ms`, `memory`, `output`, `processes`, each a number or None; None for a job without any.
        checkpoint: JSON text of an earlier attempt, or None.
    """

    id: int
    lease: int
    attempt: int
    max_attempts: int
    task: str
    queue: str
    time_limit_ms: int | None
    limits: dict[str, int | None] | None
    checkpoint: str | None
    args: dict[str, Any]


class Order(NamedTuple):
    """What a worker tells a child about one running attempt.

    Attributes:
        reason: `cancelled`, `deploy`, `superseded`, or `timeout` for the soft time limit.
        interrupt: raise an exception in the task now; otherwise `should_stop()` turns true.
    """

    id: int
    lease: int
    reason: str
    interrupt: bool


def encode_job(job: ClaimedJob) -> bytes:
    """A job as bytes; its arguments are copied as text, never parsed here."""
    limit = "null" if job.time_limit_ms is None else job.time_limit_ms
    checkpoint = "null" if job.checkpoint is None else text(job.checkpoint)
    head = f"[{job.id},{job.lease},{job.attempt},{job.max_attempts},{text(job.task)},{text(job.queue)},{limit}"
    return f"{head},{job.limits or 'null'},{checkpoint},{job.args}]".encode()


def send_job(sock: socket.socket, data: bytes) -> None:
    """Send without waiting. Raises BlockingIOError when the child's inbox is full."""
    if len(data) <= INLINE_LIMIT:
        sock.send(data, socket.MSG_DONTWAIT)
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        _send(sock, _IN_FILE, (file.fileno(),), socket.MSG_DONTWAIT)


def send_bundle(sock: socket.socket, jobs: Sequence[bytes], turns: int) -> None:
    """Send several encoded jobs, at most `INLINE_LIMIT` bytes together, and the descriptor of their turns, without waiting.

    Raises:
        BlockingIOError: the child's inbox is full.
    """
    _send(sock, SEPARATOR.join(jobs), (turns,), socket.MSG_DONTWAIT)


def receive_job(sock: socket.socket, flags: int = 0) -> bytes:
    """The next job's bytes, where no bundles are sent; empty at the end. Raises BlockingIOError with MSG_DONTWAIT when there is none."""
    return receive_jobs(sock, flags)[0]


def receive_jobs(sock: socket.socket, flags: int = 0) -> tuple[bytes, int | None]:
    """The bytes of the next job, or of the next bundle and the descriptor of its turns, which is the caller's to close.

    Raises:
        BlockingIOError: with MSG_DONTWAIT, when there is none.
    """
    data, descriptors = _receive(sock, _BUFFER, flags | _CLOSE_ON_EXEC)
    if not descriptors:
        return data, None
    if data != _IN_FILE:
        return data, descriptors[0]
    with os.fdopen(descriptors[0], "rb") as file:
        file.seek(0)
        return file.read(), None


def decode_job(data: bytes) -> Assignment:
    """Parse what `encode_job` made."""
    return Assignment(*_parse(str(data, "utf-8"))[0])


def job_id(data: bytes) -> int:
    """The id of an encoded job, without parsing its arguments."""
    return int(data[1 : data.index(b",")])


def send_order(sock: socket.socket, order: Order) -> None:
    """Send without waiting; an order that finds the socket full is lost: the harder one that follows does not need it."""
    with contextlib.suppress(OSError):
        sock.send(json.dumps(order).encode(), socket.MSG_DONTWAIT)


def receive_order(sock: socket.socket) -> Order | None:
    """The next order, without waiting; None when there is none."""
    try:
        data = sock.recv(_BUFFER, socket.MSG_DONTWAIT)
    except OSError:
        return None
    return Order(*json.loads(data)) if data else None


def send_message(sock: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """A control message, with open files when given."""
    _send(sock, json.dumps(message).encode(), descriptors, 0)


def receive_message(sock: socket.socket, flags: int = 0) -> tuple[dict[str, Any], list[int]]:
    """A control message and its open files; an empty dict at the end of the conversation."""
    data, descriptors = _receive(sock, 1_000_000, flags)
    return (json.loads(data) if data else {}), descriptors


# socket.send_fds and socket.recv_fds ignore their flags (CPython 3.11): a look that must not wait would wait for ever.
def _send(sock: socket.socket, data: bytes, descriptors: tuple[int, ...], flags: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([data], ancillary, flags)


def _receive(sock: socket.socket, size: int, flags: int) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = sock.recvmsg(size, _ROOM_FOR_DESCRIPTORS, flags)
    if not ancillary:
        return data, []
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return data, list(descriptors)
