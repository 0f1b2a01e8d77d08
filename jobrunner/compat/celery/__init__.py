"""Owns the names that applications import from `celery`: they run as jobs, with a changed import only.

It must not be needed by anything else of Jobrunner's, nor need Celery. What becomes of each setting, option and name is data in
`conf` and `options`.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module

from jobrunner.compat.celery import exceptions, signals, states
from jobrunner.compat.celery._state import current_app, current_task
from jobrunner.compat.celery.app import Celery, Task, shared_task
from jobrunner.compat.celery.canvas import Signature, chain, chord, chunks, group, maybe_signature, signature, subtask, xmap, xstarmap
from jobrunner.compat.celery.utils import uuid

__all__ = [
    "Celery", "Signature", "Task", "chain", "chord", "chunks", "current_app", "current_task", "exceptions", "group", "install",
    "maybe_signature", "shared_task", "signals", "signature", "states", "subtask", "uuid", "xmap", "xstarmap",
]  # fmt: skip

__version__ = "5.7.0"  # the interface that is stood in for, for code that asks
VERSION = (5, 7, 0)


def install() -> None:
    """Let `import celery` mean this package, in this process, from now on: for code that cannot be changed yet.

    Call it before anything imports `celery`. A module of Celery's that is not mirrored here cannot be imported then.

    Raises:
        RuntimeError: the real Celery has been imported already; two of them would not know each other's tasks.
    """
    known = sys.modules.get("celery")
    if known is not None and known is not sys.modules[__name__]:
        raise RuntimeError("celery is imported already: call jobrunner.compat.celery.install() before anything else imports it")
    sys.modules["celery"] = sys.modules[__name__]
    for found in pkgutil.walk_packages(__path__, f"{__name__}."):  # all of them: a second copy of one would have signals of its own
        sys.modules["celery" + found.name.removeprefix(__name__)] = import_module(found.name)
