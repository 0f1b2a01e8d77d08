"""Owns the chance that spreads processes: pauses that would otherwise end in all of them at once. It guards nothing.

Not the generator of the module `random`: a program that seeds that one gets the numbers it expects, whatever our threads do meanwhile. Nor
one of our own with a state, which all children of a fork would share.
"""

from __future__ import annotations

import random

_CHANCE = random.SystemRandom()


def between(low: float, high: float) -> float:
    """A number from `low` to `high`, each as likely as the others."""
    return _CHANCE.uniform(low, high)
