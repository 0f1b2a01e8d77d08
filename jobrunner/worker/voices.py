"""Owns the child's side of the talk with its worker: lines that go out, orders that come in and interrupt a running task.

It must not run task code nor know the database.
"""

from __future__ import annotations

import ctypes
import json
import signal
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from jobrunner import clock
from jobrunner.control import JobStopped
from jobrunner.current import current_or_none
from jobrunner.errors import SoftTimeLimitExceeded
from jobrunner.worker import wire

if TYPE_CHECKING:
    import asyncio
    import socket
    from types import FrameType

    from jobrunner.current import JobContext

# Sent to one child, never to its group. A real-time signal where there are some: SIGUSR1 and 2 are often the application's.
INTERRUPT = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2

MOST_EARLY = 64  # orders kept for attempts that this child does not know (yet)
_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
_SUCCESS = 7  # fields of the line of a job that returned


class Outbox:
    """Lines to the worker; whole ones, whatever thread sends them and whatever a signal handler does meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Reentrant: a signal may come while the main thread holds it, and its handler logs.
        self._lock = threading.RLock()
        self._sender: int | None = None  # the thread that is amid a line
        self._later: list[bytes] = []
        self._torn = False

    def send(self, fields: list[Any]) -> None:
        """Send one line. Raises BrokenPipeError or ConnectionError when the worker is gone."""
        data = _encode(fields).encode() + b"\n"
        with self._lock:
            if self._sender == threading.get_ident():  # this is a signal handler amid another line
                self._later.append(data)
                return
            self._send_all(data)

    def finish(self, fields: list[Any]) -> None:
        """Send the end of an attempt: from the child's own loop, where no line can be under way in this thread.

        If one seems to be, the exception of a signal handler came between two instructions of `send`.
        """
        data = (_line(fields) + "\n").encode()
        with self._lock:
            self._send_all(data)

    def _send_all(self, data: bytes) -> None:
        try:
            self._sender = threading.get_ident()
            self._send(data)
            while self._later:
                self._send(self._later.pop(0))
        finally:
            self._sender = None

    def _send(self, data: bytes) -> None:
        """A line that an exception has cut off (an interrupt, an alarm of the task's own) must not spoil the one after it."""
        data, self._torn = (b"\n" + data if self._torn else data), True
        self._sock.sendall(data)
        self._torn = False

    def log(self, context: JobContext, level: int, logger: str, message: str) -> None:
        """Send a line for the job's log."""
        self.send(["log", context.id, context.lease, level, logger, message, clock.monotonic()])


def _line(fields: list[Any]) -> str:
    """The end of an attempt as JSON. Most are of one kind, whose text is made here in a quarter of the time."""
    if len(fields) == _SUCCESS and fields[2] == wire.OK:
        job_id, lease, _, result, run_us, cpu_ms, peak = fields
        if cpu_ms is not None and peak is not None:
            return f'[{job_id},{lease},"{wire.OK}",{"null" if result is None else wire.text(result)},{run_us},{cpu_ms},{peak}]'
    return _encode(fields)


class Voice:
    """The tie of one attempt; see `jobrunner.current.Voice`.

    Args:
        outbox: where notes go.
        ear: takes in the orders of this child, for whichever attempt they are.
    """

    __slots__ = ("_ear", "_id", "_lease", "_outbox")

    def __init__(self, outbox: Outbox, ear: Ear, job: wire.Assignment) -> None:
        self._outbox, self._ear, self._id, self._lease = outbox, ear, job.id, job.lease

    def note(self, fraction: float | None, text: str | None, checkpoint: str | None) -> None:
        """Send a note."""
        self._outbox.send(["note", self._id, self._lease, fraction, text, checkpoint])

    def listen(self) -> None:
        """Take in waiting orders."""
        self._ear.listen()


def pay(context: JobContext) -> None:
    """Raise the interrupt that came before the task's code, if there was one."""
    owed, context.owed = context.owed, None
    if owed is not None:
        raise owed


class Ear(ABC):
    """Takes in orders and carries them out on the attempts that this child runs. Base of one for each way of running."""

    def __init__(self, orders: socket.socket) -> None:
        self.orders = orders
        self.attempts: dict[int, JobContext] = {}
        self._early: dict[int, wire.Order] = {}

    def began(self, context: JobContext) -> None:
        """From now on orders for this attempt count, and one that came before it had begun."""
        self.attempts[context.id] = context
        order = self._early.pop(context.id, None)
        if order is not None and order.lease == context.lease:
            self._carry_out(order, context)

    def ended(self, context: JobContext) -> None:
        """Orders for this attempt come too late from now on."""
        self.attempts.pop(context.id, None)

    def listen(self) -> None:
        """Carry out every order that waits; may raise what interrupts the task that calls this."""
        while (order := wire.receive_order(self.orders)) is not None:
            context = self.attempts.get(order.id)
            if context is None or context.lease != order.lease:
                self._keep(order)
                continue
            self._carry_out(order, context)

    def _carry_out(self, order: wire.Order, context: JobContext) -> None:
        """What comes while ours is running, and not the task's code, is owed to that: its arguments may take long to be made."""
        context.stop(order.reason)
        if order.interrupt:
            soft = order.reason == "timeout"
            error = SoftTimeLimitExceeded(context.soft_seconds or 0.0) if soft else JobStopped(order.reason)
            if context.interruptible:
                self.interrupt(context, error)
            else:
                context.owed = error

    def _keep(self, order: wire.Order) -> None:
        """It has ended meanwhile, or a thread is about to begin it."""
        self._early[order.id] = order
        if len(self._early) > MOST_EARLY:
            del self._early[next(iter(self._early))]

    @abstractmethod
    def interrupt(self, context: JobContext, error: BaseException) -> None:
        """Raise `error` in the task."""


class ProcessEar(Ear):
    """For a child that runs one job at a time in its main thread: a signal makes it listen, so that it can be interrupted anywhere.

    The exception comes between two Python instructions; a call into C is interrupted when it returns (`time.sleep`, locks and
    reads of sockets return at once).
    """

    def __init__(self, orders: socket.socket) -> None:
        super().__init__(orders)
        self.coroutine: asyncio.Task[Any] | None = None
        self.pending: BaseException | None = None
        signal.signal(INTERRUPT, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.listen()

    def interrupt(self, context: JobContext, error: BaseException) -> None:  # noqa: ARG002  there is only one
        """Raise in the main thread; a coroutine is cancelled instead: an exception from nowhere would break its event loop."""
        if self.coroutine is None:
            raise error
        self.pending = error
        self.coroutine.get_loop().call_soon_threadsafe(self.coroutine.cancel)


class ThreadEar(Ear):
    """For a child that runs jobs in threads: the exception is left for the thread's next Python instruction.

    A thread that waits in C (`time.sleep`, a socket) finds it only when that call returns.
    """

    def __init__(self, orders: socket.socket) -> None:
        super().__init__(orders)
        self.threads: dict[int, int] = {}
        self.lock = threading.RLock()  # any thread may listen, and the end of task code must not be passed by an interrupt for it
        self.coroutines: dict[int, asyncio.Task[Any]] = {}
        self.pending: dict[int, BaseException] = {}

    def listen(self) -> None:
        """Carry out every order that waits, one thread at a time."""
        with self.lock:
            super().listen()

    def interrupt(self, context: JobContext, error: BaseException) -> None:
        """Leave the exception's class for the thread: CPython takes a class, so the reason is read from the context later.

        A coroutine is cancelled instead: its thread may wait in the event loop for long.
        """
        coroutine = self.coroutines.get(context.id)
        if coroutine is not None:
            self.pending[context.id] = error
            coroutine.get_loop().call_soon_threadsafe(coroutine.cancel)
            return
        thread = self.threads.get(context.id)
        if thread == threading.get_ident():
            raise error
        if thread is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_class_for_thread(error)))

    def enter(self, context: JobContext) -> None:
        """The task's code begins in this thread, or ends before it has begun: nobody listens between the look and the word."""
        with self.lock:
            pay(context)
            context.interruptible = True

    def leave(self, context: JobContext) -> None:
        """The task's code is over in this thread: an interrupt that was left for it and has not come yet is taken back.

        It would otherwise strike the worker's own code, or the next job of this thread.
        """
        with self.lock:
            context.interruptible = False
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)


class _StoppedInThread(JobStopped):
    """JobStopped as a thread gets it: made without arguments, with the reason of the attempt that it is raised in."""

    def __init__(self) -> None:
        context = current_or_none()
        super().__init__((context.stop_reason if context is not None else None) or "cancelled")


class _SoftLimitInThread(SoftTimeLimitExceeded):
    """SoftTimeLimitExceeded as a thread gets it, made without arguments."""

    def __init__(self) -> None:
        context = current_or_none()
        super().__init__(context.soft_seconds or 0.0 if context is not None else 0.0)


for _own, _known in ((_StoppedInThread, JobStopped), (_SoftLimitInThread, SoftTimeLimitExceeded)):
    # What is on record is the class that the task's author knows.
    _own.__module__, _own.__name__, _own.__qualname__ = _known.__module__, _known.__name__, _known.__qualname__


def _class_for_thread(error: BaseException) -> type[BaseException]:
    return _SoftLimitInThread if isinstance(error, SoftTimeLimitExceeded) else _StoppedInThread


class LoopEar(Ear):
    """For a child that runs coroutines side by side: the coroutine is cancelled, and its end is then read as the order said."""

    def __init__(self, orders: socket.socket) -> None:
        super().__init__(orders)
        self.coroutines: dict[int, asyncio.Task[Any]] = {}
        self.pending: dict[int, BaseException] = {}

    def interrupt(self, context: JobContext, error: BaseException) -> None:
        """Cancel the coroutine at the `await` that it waits in."""
        coroutine = self.coroutines.get(context.id)
        if coroutine is not None:
            self.pending[context.id] = error
            coroutine.cancel()
