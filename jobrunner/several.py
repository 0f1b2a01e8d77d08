"""Owns which of an application's databases a queue, a name or a process means: the part of `JobRunner` that knows of several.

It must not open any of them: `Branch` and `JobRunner` have their pools.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from jobrunner.branches import Branch
from jobrunner.routing import DEFAULT_DATABASE, HOME, ONE_DATABASE, Routing, find_routing, no_default

if TYPE_CHECKING:
    import threading

    from flask import Flask

    from jobrunner.app import JobRunner
    from jobrunner.settings import Dsn


class Databases:
    """Base of `JobRunner`, which sets these attributes.

    Attributes:
        app: the Flask app, once there is one.
        database_name: its own database's, among several; the others are branches.
    """

    app: Flask | None
    database_name = DEFAULT_DATABASE
    _lock: threading.Lock
    _one: bool
    _routing: Routing | None
    _branches: dict[str, Branch]

    def configured_dsn(self) -> Dsn | None:
        """The configured database or the one in use; None when there is none yet. Starts nothing."""
        raise NotImplementedError

    @property
    def routing(self) -> Routing:
        """The other databases of the application and the queues that live there, found at first use.

        Raises:
            ConfigurationError: `JOBRUNNER_DATABASES` or `JOBRUNNER_ROUTES` is malformed, or names a database twice or not at all.
        """
        routing = self._routing
        if routing is None:
            routing = ONE_DATABASE if self._one else find_routing(self.app.config if self.app is not None else None)
            routing.check_apart(self.configured_dsn())
            self._routing = routing
        return routing

    def branch(self, name: str) -> JobRunner | Branch:
        """One of several databases by its name; `default` is this one itself. Raises ConfigurationError for a name that is not there."""
        if name == DEFAULT_DATABASE:
            return cast("JobRunner", self)
        dsn = self.routing.dsn_of(name)
        with self._lock:
            return self._branches.setdefault(name, Branch(cast("JobRunner", self), name, dsn))

    def branch_of(self, queue: str) -> JobRunner | Branch:
        """The database in which a queue lives.

        Raises:
            ConfigurationError: several databases are configured, none of them for this queue, and there is no default one.
        """
        routing = self.routing
        if not routing.databases:
            return cast("JobRunner", self)
        name = routing.name_of(queue)
        if name == DEFAULT_DATABASE and self.configured_dsn() is None:
            raise no_default(routing, f"queue {queue!r} has no route, and there is no default database")
        return self.branch(name)

    @property
    def home(self) -> JobRunner | Branch:
        """The database whose jobs this process runs, in a worker; the default one elsewhere."""
        return self.branch(os.environ.get(HOME) or DEFAULT_DATABASE if self.routing.databases else DEFAULT_DATABASE)
