"""A program that consumes messages, to be killed: it notes in a ledger which it was given, handled, and has acknowledged.

Arguments: DSN, queue, ledger, lease, seconds that it takes for each.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jobrunner import JobRunner, LeaseLost


def note(path: str, event: str, number: object, lease: int) -> None:
    """Append `event number pid lease` to the ledger, in one write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{event} {number} {os.getpid()} {lease}\n".encode())
    os.close(descriptor)


def main(dsn: str, name: str, ledger: str, lease: str, seconds: str) -> None:
    """Consume until killed."""
    queue = JobRunner(dsn=dsn).queue(name)
    Path(ledger).touch()
    for message in queue.consume(lease=float(lease)):
        note(ledger, "begin", message.body, message.receipt.lease)
        time.sleep(float(seconds))
        note(ledger, "end", message.body, message.receipt.lease)
        try:
            message.ack()
        except LeaseLost:
            note(ledger, "lost", message.body, message.receipt.lease)
        else:
            note(ledger, "acked", message.body, message.receipt.lease)


if __name__ == "__main__":
    main(*sys.argv[1:])
