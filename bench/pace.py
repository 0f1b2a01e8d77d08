"""Owns how fast the machine itself is at a moment: virtual cores share caches and more with strangers, and nothing here shows it as load.

It must not change a figure. What it says stands beside each of them, so that a reader can tell a slow contender from a slow minute.
"""

from __future__ import annotations

import os
import subprocess
import sys

# Objects all over the memory, as in every program here: it is the caches that neighbours take away, and arithmetic alone would not notice.
_WORK = """
import time
found = {n: str(n * 7919 % 1000003) for n in range(100000)}
def look():
    began = time.perf_counter()
    total = 0
    for n in range(0, 15000000, 75):
        total += len(found[n * 48271 % 99991])
    return time.perf_counter() - began
print(200000 / min(look() for _ in range(3)))
"""
_MILLION = 1_000_000


def pace() -> float:
    """Million objects a second that one process finds in a large dictionary while as many do so as there are cores.

    Takes about half a second.
    """
    command = [sys.executable, "-S", "-E", "-c", _WORK]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(os.cpu_count() or 1)]
    said = [float(process.communicate()[0]) for process in running]
    return sum(said) / len(said) / _MILLION
