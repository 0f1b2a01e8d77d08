"""Owns bundles: many short jobs in one datagram, each of which still either begins in the child or is taken back, never both.

It must not decide which jobs travel together nor what becomes of those that come back. With a bundle goes a counter that the kernel
keeps, with one turn for each job in it. The child takes a turn before it begins the next job; the worker takes the turns that are
left, and the last jobs of the bundle are its own again. Both ask the kernel, one of them gets the turn: nothing is locked, and a dead
child's turns are there as it left them. Why: ADR 0014.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from jobrunner.worker import wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

POSSIBLE = hasattr(os, "eventfd")  # Linux; elsewhere every job is a datagram of its own
FEWEST = 4  # jobs; the counter of a bundle costs as much as so many datagrams


class Bundle:
    """The worker's side of one bundle.

    Args:
        job_ids: of its jobs, in their order.
    """

    __slots__ = ("_ids", "_turns")

    def __init__(self, job_ids: Sequence[int]) -> None:
        self._ids = job_ids
        self._turns: int | None = os.eventfd(len(job_ids), os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def send(self, sock: socket.socket, jobs: Sequence[bytes]) -> None:
        """Send the jobs, encoded, without waiting. Raises BlockingIOError when the child's inbox is full."""
        if self._turns is None:
            return
        try:
            wire.send_bundle(sock, jobs, self._turns)
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # this user has as many descriptors on their way as he may: some arrive soon
                raise BlockingIOError(error.errno, error.strerror) from error
            raise

    def recall(self) -> Sequence[int]:
        """Take what is left of the turns, and close. Returns the ids of the jobs that have not begun and will not any more."""
        count = 0
        if self._turns is not None:
            while _take(self._turns):
                count += 1
        self.close()
        return self._ids[len(self._ids) - count :]

    def close(self) -> None:
        """Nothing in it is to come back any more."""
        if self._turns is not None:
            os.close(self._turns)
            self._turns = None


class Inbox:
    """The child's side: one job after the other, whether it came alone or in a bundle."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: deque[bytes] = deque()
        self._turns: int | None = None

    def take(self) -> bytes:
        """Wait for the next job, encoded, which begins by this; empty when there will be none.

        Raises:
            OSError: somebody has closed what is not his.
        """
        while True:
            if self._waiting and self._turns is not None:
                if _take(self._turns):
                    return self._waiting.popleft()
                self._waiting.clear()  # they have been taken back
            self._close()
            data, self._turns = wire.receive_jobs(self._sock)
            if self._turns is None:
                return data
            self._waiting.extend(data.split(wire.SEPARATOR))

    def _close(self) -> None:
        if self._turns is not None:
            os.close(self._turns)
            self._turns = None


def _take(turns: int) -> bool:
    """Take one turn; False when none is left."""
    try:
        count = os.eventfd_read(turns)
    except BlockingIOError:
        return False
    if count != 1:  # a task has closed the descriptor, and it is another file by now
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return True
