"""Owns how fast the machine itself is at a moment: virtual cores share theirs with strangers, and nothing here shows it as load.

It must not change a figure. What it says stands beside each of them, so that a reader can tell a slow contender from a slow minute.
"""

from __future__ import annotations

import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

_TEXT = b"".join(b"%d claims, %d endings, %d rows of history\n" % (n, n * n % 997, n**3 % 7919) for n in range(20_000))
_LOOKS = 3  # the fastest counts: whatever else runs for a moment makes one look slow, and strangers make all of them slow


def pace() -> float:
    """Megabytes a second that all cores together compress of one fixed text, with the interpreter out of the way; takes about 0.2 s."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as threads:
        best = min(_look(threads, cores) for _ in range(_LOOKS))
    return cores * len(_TEXT) / best / 1e6


def _look(threads: ThreadPoolExecutor, cores: int) -> float:
    began = time.perf_counter()
    for done in [threads.submit(zlib.compress, _TEXT) for _ in range(cores)]:
        done.result()
    return time.perf_counter() - began
