"""What keeps the tables small, in bounded steps that any worker takes now and then: no leader, no service of its own.

`prune` does all of it at once for history, with a function of yours that gets the rows before they go.
"""

from jobrunner.history.archive import Batch
from jobrunner.maintenance.history import Removed, prune

__all__ = ["Batch", "Removed", "prune"]
