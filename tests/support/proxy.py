"""Owns a TCP proxy before a PostgreSQL that cuts connections of transactional jobs at their COMMIT: before it, or behind it.

Behind it is the ambiguous case: the server has committed, and nobody ever told the client.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = b"jobrunner.attempt"  # what a transactional job sends first
COMMIT = b"COMMIT\0"  # not the one of READ COMMITTED
BEFORE, BEHIND = "before COMMIT", "behind COMMIT"


class Proxy:
    """Passes bytes between clients and a server's local socket, a pair of threads for each connection.

    Attributes:
        cuts: how often a connection was cut, by where.
    """

    def __init__(self, dsn: str, seed: int, chance: float) -> None:
        parts = urlsplit(dsn)
        known = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self._server = f"{known['host']}/.s.PGSQL.{known['port']}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._random, self._chance = random.Random(seed), chance
        self.cuts: Counter[str] = Counter()
        self.dsn = f"postgresql://{parts.username}@127.0.0.1:{self._listener.getsockname()[1]}{parts.path}?sslmode=disable"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nothing more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                threading.Thread(target=self._upstream, args=(client, server), daemon=True).start()

    def _upstream(self, client: socket.socket, server: socket.socket) -> None:
        deaf = threading.Event()
        threading.Thread(target=self._downstream, args=(client, server, deaf), daemon=True).start()
        of_a_job = False
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                of_a_job = of_a_job or MARK in data
                where = self._cut() if of_a_job and COMMIT in data else None
                if where == BEFORE:
                    break
                if where == BEHIND:
                    deaf.set()
                server.sendall(data)
        if not deaf.is_set():
            _end(client, server)

    def _cut(self) -> str | None:
        if self._random.random() >= self._chance:
            return None
        where = self._random.choice([BEFORE, BEHIND])
        self.cuts[where] += 1
        return where

    def _downstream(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                if deaf.is_set():
                    break
                client.sendall(data)
        _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextlib.contextmanager
def proxied(dsn: str, seed: int, chance: float) -> Iterator[Proxy]:
    """A proxy for the length of a block."""
    made = Proxy(dsn, seed, chance)
    try:
        yield made
    finally:
        made.close()
