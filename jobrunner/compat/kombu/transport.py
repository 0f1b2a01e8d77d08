"""Owns Kombu's way in: a transport with its connection, waiting for messages, and what counts as an error of the connection.

It must not read messages: channels do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
from kombu.transport import base, virtual

from jobrunner.compat.kombu.address import dsn_of, hide_password, masked, with_password
from jobrunner.compat.kombu.bell import Bell
from jobrunner.compat.kombu.broker import Broker
from jobrunner.compat.kombu.channel import Channel as OurChannel
from jobrunner.compat.kombu.intake import ConsumerLost, Surroundings
from jobrunner.compat.kombu.keeper import keeper_of
from jobrunner.compat.kombu.link import UNANSWERED, Link
from jobrunner.compat.kombu.options import read_options

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("jobrunner.kombu")

LONGEST_WAIT = 60.0  # seconds; only bounds a wait that nothing ends
TICK = 0.25  # seconds between two looks of an event loop whether a queue is to be looked into


class Transport(virtual.Transport):  # type: ignore[misc]  # Kombu has no types
    """The transport `jobrunner`. Connections are opened at first use, and anew after a fork or an outage."""

    Channel = OurChannel

    can_parse_url = True  # libpq knows its own addresses: several hosts, sockets, options
    default_port = None
    driver_type = "jobrunner"
    driver_name = "psycopg"

    connection_errors = (*virtual.Transport.connection_errors, *UNANSWERED, ConsumerLost)
    recoverable_connection_errors = connection_errors
    channel_errors = (*virtual.Transport.channel_errors, psycopg.DataError)
    recoverable_channel_errors = ()

    implements = base.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset({"direct", "topic", "fanout"}), heartbeats=False
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        hide_password(client)
        super().__init__(client, **kwargs)
        self._pid = os.getpid()
        self._is_away = False
        self._loop: Any = None
        self._ticks: Any = None

    @cached_property
    def surroundings(self) -> Surroundings:
        """What its channels share. Raises ConfigurationError for an address or an option that makes no sense."""
        dsn, options = dsn_of(self.client), read_options(self.client.transport_options)
        self._link = Link(dsn, "jobrunner-broker")
        return Surroundings(dsn, Broker(self._link), keeper_of(dsn, options), Bell(), options)

    def establish_connection(self) -> Any:
        """Make sure that the database answers and has the tables.

        Raises:
            DatabaseUnreachable: it does not answer, or refuses the login.
            SchemaMissing, SchemaOutdated: `jobrunner db upgrade` has to be run.
        """
        if self._pid != os.getpid():
            self._begin_anew()
        broker = self.surroundings.broker
        try:
            broker.size("", 0)
        except BaseException:
            self._link.close()
            raise
        return super().establish_connection()

    def verify_connection(self, connection: Any) -> bool:  # noqa: ARG002  Kombu's
        """False in a child of the process that connected: it connects anew."""
        return self._pid == os.getpid()

    def close_connection(self, connection: Any) -> None:
        """Close the channels, which gives back what they hold, then the connection."""
        if self._pid == os.getpid():
            self.unregister_from_event_loop(connection, self._loop)
        super().close_connection(connection)
        if "surroundings" in self.__dict__:
            self._link.close()

    # -- waiting

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # noqa: ARG002  Kombu's
        """Wait until messages were handed out, or `timeout` seconds (None: for ever).

        While the database does not answer it goes on waiting: leases outlive a restart, and running tasks are left alone. With several
        addresses (`url;url`) Kombu is told instead, and changes to the next one.

        Raises:
            TimeoutError: nothing came.
            ConsumerLost: the lease ran out and the messages are with others; consumers connect anew.
        """
        bell = self.surroundings.bell
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            seen = bell.rings
            if self._drain_channels():
                return
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise socket.timeout  # noqa: UP041  the name that Kombu documents
            pause = min([channel.next_look() - now for channel in self.channels] + [LONGEST_WAIT])
            bell.wait(seen, pause if deadline is None else min(pause, deadline - now))

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have an event loop hand out messages, as Celery's does with prefork: remote control answers while all children are busy."""
        bell = self.surroundings.bell
        self.unregister_from_event_loop(connection, self._loop)
        self._loop = loop
        loop.add_reader(bell.fileno(), self._on_bell)
        self._ticks = loop.call_repeatedly(TICK, self._on_tick)
        bell.ring()

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ARG002  Kombu's
        """Leave the event loop."""
        if self._loop is None:
            return
        bell = self.surroundings.bell
        self._loop.remove_reader(bell.fileno())
        self._ticks.cancel()
        self._loop = self._ticks = None
        bell.close()

    def _on_bell(self) -> None:
        self.surroundings.bell.hush()
        self._drain_channels()
        self._on_tick(ring=True)

    def _on_tick(self, *, ring: bool = False) -> None:
        """Look into queues that are due. After a look that left some so, in the loop's next round: others have their turn before."""
        if self._loop is None or min((channel.next_look() for channel in self._consuming()), default=float("inf")) > time.monotonic():
            return
        if ring:
            self.surroundings.bell.ring()
        else:
            self._drain_channels()

    def _consuming(self) -> list[OurChannel]:
        return [channel for channel in self.channels if channel._consumers]  # noqa: SLF001  Kombu's

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: FBT001, FBT002  Kombu's
        """The address for people."""
        password = self.client.password
        shown = with_password(uri, password) if include_password and isinstance(password, str) else masked(uri or "", mask)
        return f"{self.client.uri_prefix}+{shown}" if self.client.uri_prefix else shown

    @contextlib.contextmanager
    def forgiving(self) -> Iterator[None]:
        """Errors of the connection do not matter inside: leases that are not renewed do the same, later."""
        try:
            yield
        except self.connection_errors as error:
            logger.debug("ignored while closing: %s", type(error).__name__)

    def _drain_channels(self) -> int:
        count = 0
        try:
            for channel in self._consuming():
                count += channel.drain()
        except UNANSWERED as error:
            if len(self.client.alt) > 1:
                raise
            if not self._is_away:
                self._is_away = True
                logger.warning("the broker's database does not answer, waiting for it: %s", str(error).strip().partition("\n")[0])
        return count

    def answered(self) -> None:
        """A look into the database succeeded."""
        if self._is_away:
            self._is_away = False
            logger.info("the broker's database answers again")

    def _begin_anew(self) -> None:
        """In a child: nothing of the parent's is used, nothing of it closed."""
        self._pid, self._loop, self._ticks = os.getpid(), None, None
        self.__dict__.pop("surroundings", None)
        self.channels.clear()
        self._avail_channels.clear()
        self._callbacks.clear()
        del self._used_channel_ids[:]
