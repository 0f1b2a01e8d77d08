"""Owns which errors of the database may pass by themselves: after them the same call can be made again.

It must not wait nor call again; callers know how long they can.
"""

from __future__ import annotations

import psycopg
from psycopg import errors as pg

_TRANSIENT = (
    pg.DeadlockDetected,
    pg.SerializationFailure,
    pg.LockNotAvailable,
    pg.ReadOnlySqlTransaction,  # the old primary after a failover
    pg.TooManyConnections,
    pg.AdminShutdown,
    pg.CrashShutdown,
    pg.CannotConnectNow,
    pg.DiskFull,
    pg.IdleInTransactionSessionTimeout,
    pg.QueryCanceled,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: deadlock, serialisation, failover, lost or refused connection.

    Takes psycopg errors and SQLAlchemy's wrappers of them. A refused password is not transient.
    """
    original = getattr(error, "orig", None) or error
    if isinstance(original, _TRANSIENT):
        return True
    if isinstance(original, (pg.InvalidPassword, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)):
        return False
    sqlstate = getattr(original, "sqlstate", None)
    return isinstance(original, (psycopg.OperationalError, psycopg.InterfaceError)) and (
        sqlstate is None or sqlstate[:2] in {"08", "53", "57"}
    )
