"""What spreads processes leaves the program's own chance alone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from jobrunner import jitter

LIBRARY = Path(jitter.__file__).parent
OTHERS = {"jitter.py", "compat/celery/app/retrying.py"}  # the second draws in the user's own task, as Celery does


def test_a_seeded_program_gets_the_numbers_it_expects():
    """The generator of the module `random` is where it was."""
    before = random.getstate()
    assert all(0.5 <= jitter.between(0.5, 1.0) <= 1.0 for _ in range(100))
    assert random.getstate() == before


def test_nothing_else_draws():
    """Threads of ours run in the programs of others, and with their tests."""
    found = {str(path.relative_to(LIBRARY)) for path in LIBRARY.rglob("*.py") if "\nimport random" in path.read_text() or "from random" in path.read_text()}
    assert found == OTHERS


@pytest.mark.needs("linux")
def test_children_of_a_fork_differ():
    """They would do everything at the same moment otherwise."""
    read, write = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os.write(write, f"{jitter.between(0, 1):.17f}\n".encode())
            os._exit(0)
    for _ in range(2):
        os.wait()
    os.close(write)
    with os.fdopen(read) as answers:
        assert len(set(answers.read().split())) == 2
