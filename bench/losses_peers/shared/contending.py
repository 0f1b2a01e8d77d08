"""Owns what every contender of the bench `losses` is asked: jobs now, jobs for later, jobs in a transaction that is rolled back.

It must not judge, nor say what has happened to a job: the ledger does. Only `held` looks, into the contender's own storage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from protocol import Adapter, Unsupported
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS = 2  # jobs at once, for everybody: it is no matter of reliability, and figures of two machines can be compared
ORDERS = "CREATE TABLE IF NOT EXISTS losses_orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
ORDER = "INSERT INTO losses_orders (note) VALUES (:note)"


class Contender(Adapter):
    """One contender. A method that it does not have is something that it cannot do.

    Attributes:
        timeout: after how many seconds without an acknowledgement, or without a sign of life, a job is given to somebody else, or whatever
            else the contender does with one that takes so long; None: as the contender comes.
        fixed_timeout: the same, where the contender has one that cannot be set.
        directory: for whatever it has to put somewhere.
    """

    fixed_timeout: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.timeout = float(os.environ["LOSSES_TIMEOUT"]) if os.environ.get("LOSSES_TIMEOUT") else None
        self.directory = Path(os.environ["BENCH_MARKS"])

    def set_up(self) -> dict[str, Any]:
        """How its workers are started: `command`, `env`, `fixed_timeout`."""
        return {"command": self.command(), "env": self.environment(), "fixed_timeout": self.fixed_timeout}

    def command(self) -> list[str]:
        """Of the worker, which is one process with whatever it starts."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """More variables for the worker."""
        return {}

    def now(self, numbers: list[int], seconds: float) -> None:
        """Jobs of so many seconds by the plain call, one after the other; acknowledged when this returns."""
        raise NotImplementedError

    def later(self, numbers: list[int], delay: float) -> None:  # noqa: ARG002  what every contender takes
        """Jobs that are due after so many seconds."""
        raise Unsupported("has no jobs for later")

    def rolled_back(self, numbers: list[int]) -> None:
        """Jobs by the plain call, or the closest there is, inside a transaction of the application's that is rolled back."""
        raise NotImplementedError

    def held(self) -> list[int]:
        """The numbers of jobs that its storage has and would still give to a worker: now, later, or when told to by a means of its own."""
        raise NotImplementedError


def roll_back(dsn: str, enqueue: Callable[[Session], object]) -> None:
    """What a request handler does that fails after it has enqueued: a row, the job, and ROLLBACK."""
    engine = sa.create_engine("postgresql+psycopg" + dsn.removeprefix("postgresql"))
    with engine.begin() as connection:
        connection.execute(sa.text(ORDERS))
    with Session(engine) as session:
        session.execute(sa.text(ORDER), {"note": "an order"})
        enqueue(session)
        session.rollback()
    engine.dispose()
