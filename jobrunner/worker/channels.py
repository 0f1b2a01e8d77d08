"""Owns making the sockets and pipes between a worker and a child that is about to be forked. It must not use them."""

from __future__ import annotations

import os
import socket
from typing import Any

from jobrunner.worker import wire


def connect() -> tuple[dict[str, Any], tuple[int, ...], list[Any]]:
    """The ends of a new child's channels.

    Returns:
        The worker's ends as fields of `Child`; the child's descriptors (inbox, outbox, orders, stdout, stderr); and what has to be
        closed here once they are sent, as functions.
    """
    inbox, inbox_there = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
    outbox, outbox_there = socket.socketpair()
    orders, orders_there = socket.socketpair(socket.AF_UNIX, wire.JOB_SOCKET)
    outbox.setblocking(False)  # noqa: FBT003  the standard library's signature
    pipes = {number: os.pipe() for number in (1, 2)}
    for read, _ in pipes.values():
        os.set_blocking(read, False)
    fields = {
        "inbox": inbox, "inbox_there": inbox_there, "outbox": outbox, "orders": orders,
        "outputs": {number: read for number, (read, _) in pipes.items()},
    }  # fmt: skip
    writes = [write for _, write in pipes.values()]
    theirs = (inbox_there.fileno(), outbox_there.fileno(), orders_there.fileno(), *writes)
    return fields, theirs, [outbox_there.close, orders_there.close, *(lambda end=end: os.close(end) for end in writes)]
