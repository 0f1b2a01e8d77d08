"""Owns a message broker for programs that talk AMQP 0-9-1 through pika: as much of one as a shop needs, in threads of this process.

It stands where RabbitMQ would: queues in memory, acknowledgements, redelivery, a prefetch count, dead letters, confirms. It must not know
what the messages are about. `JOBRUNNER_TEST_AMQP_URL` has the tests use a real broker instead.
"""

from __future__ import annotations

import contextlib
import os
import socketserver
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pika
from pika import frame, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

GIVEN = "JOBRUNNER_TEST_AMQP_URL"
QUEUES = ("orders", "orders.dead")  # of the example: emptied on a broker that outlives the test
LARGEST = 131_072  # bytes of a frame
ALL_CAPABILITIES = {"publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True}


@dataclass
class Parcel:
    """A message and where it was published to."""

    exchange: str
    key: str
    size: int = 0
    properties: Any = None
    body: bytes = b""
    redelivered: bool = False


@dataclass
class Shelf:
    """A queue."""

    parcels: deque[Parcel] = field(default_factory=deque)
    dead_exchange: str | None = None


class _Broker(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Peer)
        self.lock = threading.RLock()
        self.shelves: defaultdict[str, Shelf] = defaultdict(Shelf)
        self.bindings: defaultdict[str, list[str]] = defaultdict(list)
        self.peers: list[_Peer] = []

    def route(self, exchange: str, key: str, parcel: Parcel) -> None:
        """To the queue of that name by the default exchange, else to all queues that are bound."""
        for name in [key] if not exchange else self.bindings[exchange]:
            self.shelves[name].parcels.append(parcel)

    def pump(self) -> None:
        """Give out what can be given."""
        for peer in self.peers:
            for tag, (channel, queue) in list(peer.consumers.items()):
                shelf = self.shelves[queue]
                while shelf.parcels and (not peer.prefetch or len(peer.held) < peer.prefetch):
                    peer.give(channel, tag, queue, shelf.parcels.popleft())


class _Peer(socketserver.BaseRequestHandler):
    """One connection, with one channel: more has no use in a shop."""

    server: _Broker

    def setup(self) -> None:
        self.consumers: dict[str, tuple[int, str]] = {}
        self.held: dict[int, tuple[str, Parcel]] = {}
        self.prefetch = self.last_tag = self.published = 0
        self.confirms = False
        self.coming: Parcel | None = None
        with self.server.lock:
            self.server.peers.append(self)

    def handle(self) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            while more := self.request.recv(LARGEST):
                data += more
                while (found := frame.decode_frame(data))[0]:
                    data = data[found[0] :]
                    with self.server.lock:
                        self.take(found[1])
                        self.server.pump()

    def finish(self) -> None:
        """Whatever it had not acknowledged goes back to the front, in the old order."""
        with self.server.lock:
            self.server.peers.remove(self)
            self.consumers.clear()
            for tag in sorted(self.held, reverse=True):
                self.give_back(tag)
            self.server.pump()

    def take(self, value: Any) -> None:
        """One frame."""
        if isinstance(value, frame.ProtocolHeader):
            self.say(0, spec.Connection.Start(0, 9, {"capabilities": ALL_CAPABILITIES}))
        elif isinstance(value, frame.Heartbeat):
            self.send(frame.Heartbeat().marshal())  # as often as the other side: then neither takes the other for dead
        elif isinstance(value, frame.Method):
            self.answer(value.channel_number, value.method)
        elif self.coming is not None and isinstance(value, frame.Header):
            self.coming.size, self.coming.properties = value.body_size, value.properties
            self.complete(value.channel_number, self.coming)
        elif self.coming is not None and isinstance(value, frame.Body):
            self.coming.body += value.fragment
            self.complete(value.channel_number, self.coming)

    def answer(self, channel: int, method: Any) -> None:
        """One method; what is not here is refused, so that nobody waits for an answer that does not come."""
        if (simple := ANSWERS.get(method.NAME)) is not None:
            self.say(channel, simple())
        elif (found := getattr(self, "on_" + method.NAME.replace(".", "_").lower(), None)) is not None:
            found(channel, method)
        elif method.NAME not in NO_ANSWER:
            self.say(0, spec.Connection.Close(540, f"NOT_IMPLEMENTED - {method.NAME}", *divmod(method.INDEX, 1 << 16)))

    def on_connection_startok(self, _channel: int, _method: Any) -> None:
        self.say(0, spec.Connection.Tune(1, LARGEST, 0))

    def on_queue_declare(self, channel: int, method: Any) -> None:
        shelf = self.server.shelves[method.queue]
        shelf.dead_exchange = (method.arguments or {}).get("x-dead-letter-exchange", shelf.dead_exchange)
        self.say(channel, spec.Queue.DeclareOk(method.queue, len(shelf.parcels), 0))

    def on_queue_bind(self, channel: int, method: Any) -> None:
        if method.queue not in self.server.bindings[method.exchange]:
            self.server.bindings[method.exchange].append(method.queue)
        self.say(channel, spec.Queue.BindOk())

    def on_basic_qos(self, channel: int, method: Any) -> None:
        self.prefetch = method.prefetch_count
        self.say(channel, spec.Basic.QosOk())

    def on_basic_consume(self, channel: int, method: Any) -> None:
        self.say(channel, spec.Basic.ConsumeOk(method.consumer_tag))
        self.consumers[method.consumer_tag] = (channel, method.queue)

    def on_basic_cancel(self, channel: int, method: Any) -> None:
        self.consumers.pop(method.consumer_tag, None)  # what it was given stays its own until it is acknowledged
        if not method.nowait:
            self.say(channel, spec.Basic.CancelOk(method.consumer_tag))

    def on_basic_publish(self, _channel: int, method: Any) -> None:
        self.coming = Parcel(method.exchange, method.routing_key)

    def on_confirm_select(self, channel: int, _method: Any) -> None:
        self.confirms = True
        self.say(channel, spec.Confirm.SelectOk())

    def on_basic_ack(self, _channel: int, method: Any) -> None:
        for tag in self.meant(method):
            del self.held[tag]

    def on_basic_nack(self, _channel: int, method: Any) -> None:
        for tag in reversed(self.meant(method)):  # the front of the queue then has them in their old order
            self.refuse(tag, requeue=method.requeue)

    def on_basic_reject(self, _channel: int, method: Any) -> None:
        self.refuse(method.delivery_tag, requeue=method.requeue)

    def meant(self, method: Any) -> list[int]:
        """The deliveries that one is about: with `multiple` all up to its own, and with the tag 0 all there are."""
        if not method.multiple:
            return [method.delivery_tag]
        return [tag for tag in sorted(self.held) if tag <= (method.delivery_tag or tag)]

    def refuse(self, tag: int, *, requeue: bool) -> None:
        """Back to its queue, or to where dead letters go."""
        if requeue:
            self.give_back(tag)
            return
        queue, parcel = self.held.pop(tag)
        if dead := self.server.shelves[queue].dead_exchange:
            self.server.route(dead, queue, Parcel(dead, queue, parcel.size, parcel.properties, parcel.body))

    def complete(self, channel: int, parcel: Parcel) -> None:
        """Route what is published once all of it has come."""
        if len(parcel.body) < parcel.size:
            return
        self.coming = None
        self.server.route(parcel.exchange, parcel.key, parcel)
        if self.confirms:
            self.published += 1
            self.say(channel, spec.Basic.Ack(self.published))

    def give(self, channel: int, consumer: str, queue: str, parcel: Parcel) -> None:
        """Deliver one message."""
        self.last_tag += 1
        self.held[self.last_tag] = (queue, parcel)
        pieces: list[Any] = [
            frame.Method(channel, spec.Basic.Deliver(consumer, self.last_tag, parcel.redelivered, parcel.exchange, parcel.key)),
            frame.Header(channel, parcel.size, parcel.properties),
            frame.Body(channel, parcel.body),
        ]
        self.send(b"".join(piece.marshal() for piece in pieces))

    def give_back(self, tag: int) -> None:
        """To the front of its queue."""
        queue, parcel = self.held.pop(tag)
        parcel.redelivered = True
        self.server.shelves[queue].parcels.appendleft(parcel)

    def say(self, channel: int, method: Any) -> None:
        """Send one method."""
        self.send(frame.Method(channel, method).marshal())

    def send(self, data: bytes) -> None:
        """Send bytes; who has gone is seen by the reader of the socket."""
        with contextlib.suppress(OSError):
            self.request.sendall(data)


ANSWERS = {
    "Connection.Open": spec.Connection.OpenOk, "Connection.Close": spec.Connection.CloseOk, "Channel.Open": spec.Channel.OpenOk,
    "Channel.Close": spec.Channel.CloseOk, "Exchange.Declare": spec.Exchange.DeclareOk,
}  # fmt: skip
NO_ANSWER = {"Connection.TuneOk", "Connection.CloseOk", "Channel.CloseOk"}


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """The address of a broker with empty queues."""
    if given := os.environ.get(GIVEN):
        connection = pika.BlockingConnection(pika.URLParameters(given))
        channel = connection.channel()
        for queue in QUEUES:
            channel.queue_delete(queue)
        connection.close()
        yield given
        return
    with _Broker() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"amqp://guest:guest@127.0.0.1:{server.server_address[1]}/%2F"
        finally:
            server.shutdown()


def waiting(url: str, queue: str) -> int:
    """How many messages wait in a queue that is there."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)
    finally:
        connection.close()
