"""Moving from another way to run background work: what code uses of it, and what becomes of each use.

It must not import the code that is looked at.
"""

from __future__ import annotations

from jobrunner.migrating.ratings import WAYS, Rating, Rule, all_rules
from jobrunner.migrating.scanning import scan
from jobrunner.migrating.uses import Report, Use, groups

__all__ = ["WAYS", "Rating", "Report", "Rule", "Use", "all_rules", "groups", "scan"]
