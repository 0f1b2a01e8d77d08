"""Owns the ways in which a worker runs jobs, for tests of what must hold in all of them."""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Mode(NamedTuple):
    """One way to run jobs.

    Attributes:
        name: as it is called in the documentation.
        task: of `chaos_app`: notes its begin and end, and takes `seconds` between.
        options: of `jobrunner work`, with the number of slots left out.
    """

    name: str
    task: str
    options: tuple[str, ...]

    def slots(self, count: int) -> tuple[str, ...]:
        """The options for so many jobs at once."""
        return tuple(option.format(count) for option in self.options)


PROCESS = Mode("process", "work", ("-c", "{}"))
THREADS = Mode("threads", "work", ("--threads", "{}"))
ASYNC = Mode("async", "awaiting", ("-c", "1", "--async-slots", "{}"))
MODES = {mode.name: mode for mode in (PROCESS, THREADS, ASYNC)}
SHARED = {mode.name: mode for mode in (THREADS, ASYNC)}

each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
