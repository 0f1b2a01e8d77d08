"""Owns `rolled_back`: one transaction around everything that an application's sessions do, undone at the end.

It must not know jobs. It relies on what SQLAlchemy documents: a Session on a Connection that is in a savepoint works in one of its own.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping


@contextmanager
def rolled_back(place: Any) -> Iterator[sa.Connection]:
    """Everything that sessions do inside is one transaction, which is rolled back at the end.

    With Flask-SQLAlchemy every session of the app joins it, in requests of a test client and in jobs too: what they commit is seen by the
    others and nowhere else, what they roll back is undone to their last commit. All of `SQLALCHEMY_BINDS` are treated so.

    An app context need not be active, and better is not: Flask lets a request of a test client use the context it finds, with the
    session of the test in it, and does not end that session with the request.

    Args:
        place: the Flask app, whose extension is Flask-SQLAlchemy; or a SQLAlchemy Engine, then bind your sessions to the connection.

    Yields:
        The connection: for `testing.Jobs(jobs, connection=…)`.

    Raises:
        ConfigurationError: it is neither, it is in use already, or the transaction was ended inside.
    """
    with ExitStack() as stack:
        if isinstance(place, sa.Engine):
            yield stack.enter_context(_transaction(place))
            return
        extension, engines = _engines_of(place)
        connections = {key: stack.enter_context(_transaction(engine)) for key, engine in engines.items()}
        originals = dict(engines)
        _forget_session(extension)
        engines.update(connections)
        try:
            yield connections[None]
        finally:
            _forget_session(extension)
            engines.update(originals)


@contextmanager
def _transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        transaction = connection.begin()
        connection.url = engine.url  # type: ignore[attr-defined]  # Flask-SQLAlchemy's repr, in the output of a failed test, asks for it
        connection.begin_nested()  # so that a session's rollback ends at its own savepoint, not the whole transaction
        try:
            yield connection
            if not transaction.is_active:
                raise ConfigurationError(
                    "rolled_back(): its transaction was ended inside: what was done after that was not undone",
                    hint="commit and roll back sessions, never the connection",
                )
        finally:
            transaction.close()


def _engines_of(app: Any) -> tuple[Any, MutableMapping[str | None, Any]]:
    extension: Any = getattr(app, "extensions", {}).get("sqlalchemy")
    if not hasattr(app, "app_context") or not hasattr(type(extension), "engines") or not hasattr(extension, "session"):
        raise ConfigurationError(f"rolled_back({app!r}): expected a Flask app with Flask-SQLAlchemy, or a SQLAlchemy Engine")
    with app.app_context():
        engines: MutableMapping[str | None, Any] = extension.engines
    for engine in engines.values():
        if not isinstance(engine, sa.Engine):
            raise ConfigurationError("rolled_back(): the app's sessions are in a test's transaction already", hint="use that connection")
    if None not in engines:
        raise ConfigurationError("rolled_back(): the app has no SQLALCHEMY_DATABASE_URI, only binds")
    return extension, engines


def _forget_session(extension: Any) -> None:
    """End the session of the active app context, which is on another connection than the next one will be."""
    with suppress(RuntimeError):  # there is no app context
        extension.session.remove()
