"""Owns the short way into a caller's transaction: a statement straight to psycopg, on the connection that SQLAlchemy holds.

It must not be taken where anybody could tell: not with listeners, logging or another dialect that want to see each statement, and
not to begin a transaction. SQLAlchemy's own way computes as much again as psycopg's, for a statement that needs nothing of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, LiteralString, NoReturn

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import sqlalchemy as sa


def driver_of(connection: sa.Connection) -> psycopg.Connection[Any] | None:
    """The connection of psycopg when a statement may go straight to it, inside the transaction that has begun; else None."""
    dialect = connection.dialect
    # A subclass may have its own idea of how statements are sent; the asynchronous dialect is one.
    if type(dialect) is not PGDialect_psycopg or not connection.in_transaction():
        return None
    savepoint = connection.get_nested_transaction()
    if savepoint is not None and not savepoint.is_active:  # it is to be rolled back before anything else; SQLAlchemy says so
        return None
    seen = connection.dispatch
    if seen.before_cursor_execute or seen.after_cursor_execute or seen.before_execute or seen.after_execute:
        return None
    if dialect.dispatch.do_execute or dialect.dispatch.handle_error or connection.engine.logger.isEnabledFor(logging.INFO):
        return None
    driver = connection.connection.driver_connection
    return driver if isinstance(driver, psycopg.Connection) else None


def rows(
    connection: sa.Connection, driver: psycopg.Connection[Any], statement: LiteralString, parameters: Mapping[str, Any]
) -> Sequence[Any]:
    """Run one statement and give its rows; what fails, fails as it would by way of `connection`.

    Raises:
        sqlalchemy.exc.DBAPIError: around psycopg's error; a lost connection is invalidated.
    """
    try:
        with driver.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()
    except psycopg.Error as error:
        _refuse(connection, driver, statement, parameters, error)
    except Exception:
        raise
    except BaseException as error:  # an interrupt: nobody knows how far the statement came
        connection.invalidate(error)
        raise


def _refuse(
    connection: sa.Connection, driver: psycopg.Connection[Any], statement: str, parameters: Mapping[str, Any], error: psycopg.Error
) -> NoReturn:
    lost = connection.dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
    wrapped = DBAPIError.instance(
        statement,
        dict(parameters),
        error,
        psycopg.Error,
        hide_parameters=connection.engine.hide_parameters,
        connection_invalidated=lost,
        dialect=connection.dialect,
    )
    if lost:
        connection.invalidate(error)
    raise wrapped from error
