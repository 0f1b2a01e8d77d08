"""Owns `ExceptionInfo`, what hooks and signals are given of an exception beside the exception itself.

It must not keep the frames longer than the one who holds it.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class ExceptionInfo:
    """An exception as Celery's hooks see it.

    Attributes:
        type: its class; exception: itself; traceback: as text; tb: as an object.
        internal: whether it was raised outside of the task's body.
    """

    def __init__(self, error: BaseException, *, internal: bool = False) -> None:
        self.type, self.exception, self.internal = type(error), error, internal
        self.tb: TracebackType | None = error.__traceback__
        self.traceback = "".join(traceback.TracebackException(type(error), error, error.__traceback__, compact=True).format())

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """For `logging`."""
        return self.type, self.exception, self.tb

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {self.exception!r}>"
