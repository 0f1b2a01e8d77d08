"""Owns who is told when an application has been loaded, and when the processes of its workers begin and end.

It must not know the workers: they call it. What a companion does in the process from which children are forked has to be safe to fork.
"""

from __future__ import annotations

from typing import Protocol


class Companion(Protocol):
    """What lives beside the tasks of a JobRunner and has something to do at these moments."""

    def loaded(self) -> None:
        """The application has been imported, for a worker or a command. May register tasks. What it raises is an error of the app."""

    def worker_began(self) -> None:
        """In the process that imported the application for a worker, before any child exists."""

    def worker_ended(self) -> None:
        """In the same, when all children are gone. Not called when it is killed."""

    def process_began(self) -> None:
        """In a child that runs jobs, before the first one."""

    def process_ended(self, code: int) -> None:
        """In the same, when it leaves by itself, with the exit code. Not called when it is killed."""


class Lifecycle:
    """The companions of one JobRunner, told in the order in which they joined.

    Attributes:
        worker_name: in the processes of a worker the name that it was given, before `worker_began`; None without one, and elsewhere.
    """

    def __init__(self) -> None:
        self.companions: list[Companion] = []
        self.worker_name: str | None = None

    def join(self, companion: Companion) -> None:
        """Tell this one from now on."""
        self.companions.append(companion)

    def loaded(self) -> None:
        """See `Companion`, as for the following."""
        for companion in self.companions:
            companion.loaded()

    def worker_began(self) -> None:  # noqa: D102  as in Companion, here and below
        for companion in self.companions:
            companion.worker_began()

    def worker_ended(self) -> None:  # noqa: D102
        for companion in self.companions:
            companion.worker_ended()

    def process_began(self) -> None:  # noqa: D102
        for companion in self.companions:
            companion.process_began()

    def process_ended(self, code: int) -> None:  # noqa: D102
        for companion in self.companions:
            companion.process_ended(code)
