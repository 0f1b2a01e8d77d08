"""Owns what contenders have in common whose calls are coroutines: a loop to run them in, and a transaction that such a call can join.

It must not be imported by others: it needs SQLAlchemy with `asyncio`, which their environments do not have.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from contending import ORDER, ORDERS, Contender
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class AsyncContender(Contender):
    """One loop, in which every call runs to its end."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's value."""
        return self._runner.run(coroutine)


async def roll_back(dsn: str, driver: str, enqueue: Callable[[AsyncSession], Coroutine[Any, Any, object]]) -> None:
    """As `contending.roll_back`, with SQLAlchemy's session for coroutines on such a driver."""
    engine = create_async_engine(f"postgresql+{driver}" + dsn.removeprefix("postgresql"))
    async with engine.begin() as connection:
        await connection.execute(sa.text(ORDERS))
    async with AsyncSession(engine) as session:
        await session.execute(sa.text(ORDER), {"note": "an order"})
        await enqueue(session)
        await session.rollback()
    await engine.dispose()
