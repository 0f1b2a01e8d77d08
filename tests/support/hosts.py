"""Owns "hosts" for workers of a test, each with a network to the server that can be cut: a network namespace, or a proxy that goes silent.

Nobody is told of a cut: no connection is closed, no packet refused.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK = 0.1  # seconds between looks of a pair of connections at whether the proxy is silent
BLOCKS = 64  # of four addresses each, in one /24


class Forwarder:
    """Passes bytes between clients on TCP and a server's local socket; silent, it passes nothing and closes nothing.

    Attributes:
        dsn: the server's address through it.
    """

    def __init__(self, dsn: str, address: str = "127.0.0.1") -> None:
        parts = urlsplit(dsn)
        known = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self._server = f"{known['host']}/.s.PGSQL.{known['port']}"
        self._listener = socket.create_server((address, 0))
        self._open = threading.Event()
        self._open.set()
        self._closed = threading.Event()
        self.dsn = f"postgresql://{parts.username}@{address}:{self._listener.getsockname()[1]}{parts.path}?sslmode=disable"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Pass nothing any more."""
        self._open.clear()

    def mend(self) -> None:
        """Go on, with what has come meanwhile."""
        self._open.set()

    def close(self) -> None:
        """End every connection."""
        self._closed.set()
        self._open.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            self._open.wait()
            server.connect(self._server)
            others = {client: server, server: client}
            while not self._closed.is_set():
                self._open.wait()
                for ready in select.select(list(others), [], [], LOOK)[0]:
                    data = ready.recv(65_536)
                    self._open.wait()  # what was on its way when the network was cut arrives when it is mended
                    if not data:
                        return
                    others[ready].sendall(data)


class Host:
    """Where a worker runs, and its way to the server.

    Attributes:
        dsn: the server's address from there.
        within: what stands before a command so that it runs there.
    """

    def __init__(self, forwarder: Forwarder, namespace: str | None = None) -> None:
        self._forwarder, self._namespace = forwarder, namespace
        self.dsn = forwarder.dsn
        self.within = ("ip", "netns", "exec", namespace) if namespace else ()

    def cut(self) -> None:
        """Take the network away: the link down, or the proxy silent."""
        if self._namespace:
            _ip("link", "set", self._namespace, "down")
        else:
            self._forwarder.cut()

    def mend(self) -> None:
        """Give it back."""
        if self._namespace:
            _ip("link", "set", self._namespace, "up")
        else:
            self._forwarder.mend()


@contextlib.contextmanager
def namespace(dsn: str, number: int) -> Iterator[Host]:
    """A host with a network of its own: a namespace and a pair of virtual Ethernet cards. Root only."""
    name = f"jr{os.urandom(3).hex()}{number}"  # also of our end of the pair: at most 15 characters
    block = (os.getpid() % (BLOCKS // 2)) * 8 + number * 4
    ours, theirs = f"10.213.77.{block + 1}", f"10.213.77.{block + 2}"
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)  # and with it the pair of cards
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{ours}/30", "dev", name)
        _ip("link", "set", name, "up")
        for command in (("addr", "add", f"{theirs}/30", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
            _ip("-n", name, *command)
        forwarder = Forwarder(dsn, ours)
        stack.callback(forwarder.close)
        yield Host(forwarder, name)


@contextlib.contextmanager
def behind_proxy(dsn: str, _number: int) -> Iterator[Host]:
    """This host, behind a proxy of its own."""
    forwarder = Forwarder(dsn)
    try:
        yield Host(forwarder)
    finally:
        forwarder.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
