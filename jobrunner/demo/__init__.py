"""The demonstration behind `jobrunner demo`: real input, a real worker, real failures, and the questions one can ask afterwards.

It must not print (the command line does), nor touch a job that it did not write itself.
"""

from __future__ import annotations

from jobrunner.demo.inputs import Trouble, find_sources, spread
from jobrunner.demo.numbers import Finding, Reason, Summary
from jobrunner.demo.processes import Interrupted
from jobrunner.demo.show import LEASE, Demo, Progress, Settings, WorkerGone

__all__ = [
    "LEASE",
    "Demo",
    "Finding",
    "Interrupted",
    "Progress",
    "Reason",
    "Settings",
    "Summary",
    "Trouble",
    "WorkerGone",
    "find_sources",
    "spread",
]
