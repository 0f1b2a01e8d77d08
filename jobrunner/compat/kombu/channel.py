"""Owns a channel of Kombu: AMQP's verbs on queues, exchanges and messages, as the broker's tables know them.

It must not keep a connection nor a thread: those are the transport's and the keeper's.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.transport.virtual.base import UNDELIVERABLE_FMT, UndeliverableWarning
from kombu.utils.json import loads
from kombu.utils.uuid import uuid

from jobrunner.compat.kombu.broker import EVERY, Delivery
from jobrunner.compat.kombu.envelopes import envelope_of, milliseconds_of, pattern_of
from jobrunner.compat.kombu.intake import Intake
from jobrunner.compat.kombu.keeper import HINT
from jobrunner.wakeups import waker_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jobrunner.compat.kombu.transport import Transport

BATCH = 100  # messages of one look, for who sets no limit
DECLARED_COUNT = 10_000  # where a declaration stops counting what waits; a passive one counts all
_KINDS = ("direct", "topic", "fanout")


class QoS(virtual.QoS):  # type: ignore[misc]  # Kombu has no types
    """What was delivered and not acknowledged; it goes back by one statement."""

    def restore_unacked(self) -> list[tuple[BaseException, object]]:
        """Give everything back; nothing can fail, because a lease that is not renewed does the same."""
        self._flush()
        tags = list(self._delivered)
        self._delivered.clear()
        self.channel.give_back(tags)
        return []


class Channel(virtual.Channel):  # type: ignore[misc]  # Kombu has no types
    """A channel. One thread consumes; others may publish and acknowledge."""

    QoS = QoS
    supports_fanout = True
    max_priority = 255
    body_encoding = None  # by the body: text stays readable in the table, bytes become base64

    connection: Transport

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._pid = os.getpid()
        self._own = connection.surroundings
        self._intake = Intake(self._own, self._restore_queues)
        self._declared: dict[str, dict[str, Any]] = {}
        self._inbox: deque[tuple[str, Delivery]] = deque()  # fetched and not handed out: a callback raised, or consumes no more

    # -- exchanges and queues

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",  # noqa: A002  Kombu's name
        *args: Any,
        passive: bool = False,
        **kwargs: Any,
    ) -> None:
        """As in Kombu; a passive declaration finds an exchange of other processes by its bindings."""
        if passive and exchange not in self.state.exchanges and self._own.broker.bindings(exchange):
            return
        if not passive and type and type not in _KINDS:
            supported = f"the type {type!r} is not supported, only {', '.join(_KINDS)} are"
            raise ChannelError(f"exchange {exchange!r}: {supported}", (40, 10), "Channel.exchange_declare", "540")
        super().exchange_declare(exchange, type, *args, passive=passive, **kwargs)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  Kombu's
        """Forget an exchange: its bindings end, its queues stay."""
        self._own.broker.unbind(exchange)
        self.state.exchanges.pop(exchange, None)

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> queue_declare_ok_t:  # noqa: FBT001, FBT002  Kombu's
        """Make a queue; passively: only say how many messages wait. ChannelError 404 when it is not there."""
        queue = queue or f"amq.gen-{uuid()}"
        if not passive:
            self._new_queue(queue, **kwargs)
        waiting, exists = self._own.broker.size(queue, EVERY if passive else DECLARED_COUNT)
        if passive and not exists:
            raise ChannelError(f"NOT_FOUND - no queue {queue!r}", (50, 10), "Channel.queue_declare", "404")
        return queue_declare_ok_t(queue, waiting, 0)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_kwargs: Any) -> None:  # noqa: FBT001, FBT002  Kombu's
        """Remove a queue with its bindings and what waits in it.

        With `if_unused` it stays while a channel of this connection consumes from it, or a consumer of any process that acknowledges and
        began with it; of others nobody keeps a record.
        """
        if if_unused and any(queue in channel._active_queues for channel in self.connection.channels):  # noqa: SLF001  Kombu's only list of them
            return
        if self._own.broker.delete(queue, if_empty=if_empty, if_unused=if_unused):  # else whoever restores it has to know how
            self._declared.pop(queue, None)
            self.state.queue_bindings_delete(queue)

    def queue_bind(self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **_kwargs: Any) -> None:
        """Lead messages of an exchange to a queue, in every process."""
        exchange = exchange or "amq.direct"
        self.state.binding_declare(queue, exchange, routing_key, arguments)
        self._queue_bind(exchange, routing_key, None, queue)

    def queue_unbind(self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **_kwargs: Any) -> None:  # noqa: ARG002  Kombu's
        """End one binding."""
        self.state.binding_delete(queue, exchange, routing_key)
        self._own.broker.unbind(exchange or "amq.direct", routing_key or "", queue)

    def list_bindings(self) -> list[tuple[str, str, str]]:
        """(queue, exchange, routing key) of all processes."""
        return [(queue, exchange, routing_key) for exchange, routing_key, _, queue in self._own.broker.bindings()]

    def get_table(self, exchange: str) -> list[tuple[str, str | None, str]]:
        """(routing key, pattern, queue) of an exchange."""
        return [(routing_key, pattern, queue) for _, routing_key, pattern, queue in self._own.broker.bindings(exchange)]

    def prepare_queue_arguments(self, arguments: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        """`expires` and `message_ttl` of a queue under RabbitMQ's names."""
        return to_rabbitmq_queue_arguments(arguments or {}, **kwargs)

    def _kind_of(self, exchange: str) -> str:
        given = self.state.exchanges.get(exchange, {}).get("type") or exchange.removeprefix("amq.")
        return given if given in _KINDS else "direct"

    def _queue_bind(self, exchange: str, routing_key: str, _pattern: object, queue: str) -> None:
        kind = self._kind_of(exchange)
        self._own.broker.bind(exchange, routing_key or "", queue, kind, pattern_of(routing_key or "") if kind == "topic" else None)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        arguments = kwargs.get("arguments")
        self._declared[queue] = {
            "auto_delete": bool(kwargs.get("auto_delete") or kwargs.get("exclusive")),
            "expires_ms": milliseconds_of(arguments, "x-expires"),
            "message_ttl_ms": milliseconds_of(arguments, "x-message-ttl"),
        }
        self._own.broker.declare(queue, **self._declared[queue])

    def _has_queue(self, queue: str, **_kwargs: Any) -> bool:
        return self._own.broker.size(queue, 0)[1]

    def _size(self, queue: str) -> int:
        return self._own.broker.size(queue)[0]

    def _purge(self, queue: str) -> int:
        return self._own.broker.purge(queue)

    def _delete(self, queue: str, *_args: Any, **_kwargs: Any) -> None:
        self._own.broker.delete(queue)

    def _restore_queues(self, queues: Iterable[str]) -> None:
        """For the keeper: queues that are consumed from are there, whoever removed them."""
        for queue in queues:
            self._own.broker.declare(queue, **self._declared.get(queue, {}))
            for binding in list(self.state.queue_bindings(queue)):
                self._queue_bind(binding.exchange, binding.routing_key, None, queue)

    # -- producing

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **_kwargs: Any) -> None:
        """Put a message where its exchange and routing key lead; committed when this returns.

        Raises:
            psycopg.OperationalError, DatabaseUnreachable: the database did not answer. When the connection broke before the answer, the
                message may be there: Kombu's retry then sends it twice, as with any broker.
        """
        self._inplace_augment_message(message, exchange, routing_key)
        if not exchange:
            self._put(routing_key, message)
            return
        envelope = envelope_of(message, self._priority_of(message))
        queues = self._own.broker.publish(exchange, routing_key or "", envelope)
        if queues:
            if envelope.available_at is None:
                self._wake(queues)
        elif self.deadletter_queue is not None:
            warnings.warn(UndeliverableWarning(UNDELIVERABLE_FMT.format(exchange=exchange, routing_key=routing_key)), stacklevel=2)
            self._put(self.deadletter_queue, message)

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Text as it is, also when it comes as bytes; other bytes as base64. With the option `body_encoding` as Kombu does it."""
        if encoding:
            return super().encode_body(body, encoding)  # type: ignore[no-any-return]
        if isinstance(body, bytes):
            try:
                return body.decode(), "utf-8"
            except UnicodeDecodeError:
                return super().encode_body(body, "base64")  # type: ignore[no-any-return]
        return body, "utf-8"

    def _put(self, queue: str, message: dict[str, Any], **_kwargs: Any) -> None:
        envelope = envelope_of(message, self._priority_of(message))
        self._own.broker.put(queue, envelope)
        if envelope.available_at is None:
            self._wake([queue])

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_kwargs: Any) -> None:
        self._wake(self._own.broker.publish(exchange, routing_key or "", envelope_of(message, self._priority_of(message))))

    def _priority_of(self, message: dict[str, Any]) -> int:
        return int(self._get_message_priority(message, reverse=self._own.options.lowest_first))

    def _wake(self, queues: Iterable[str]) -> None:
        for queue in queues:
            waker_of(self._own.dsn).wake(HINT + queue)

    # -- consuming

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **kwargs: Any) -> None:  # noqa: FBT001  Kombu's
        """Have messages of a queue handed out."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self._intake.begin(queue, acked=not no_ack)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Have them handed out no more; what was fetched already goes back."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues and self._pid == os.getpid():
            self._return_inbox(queue)
            self._intake.end(queue)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:  # noqa: FBT001, FBT002  Kombu's
        """How many messages may be with this channel unacknowledged; 0: any number."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._own.bell.ring()

    def basic_get(self, queue: str, no_ack: bool = False, **_kwargs: Any) -> Any:  # noqa: FBT001, FBT002  Kombu's
        """One message at once, or None."""
        for delivery in self._intake.give(queue, 1, acked=not no_ack):
            message = self.Message(self._raw(delivery), channel=self)
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            return message
        return None

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:  # noqa: FBT001, FBT002  Kombu's
        """Remove a message for good, fenced by its delivery: when somebody else was given it since, it stays theirs."""
        for tag in self._up_to(delivery_tag) if multiple else [delivery_tag]:
            self._intake.ack([tag])
            self.qos.ack(tag)
        self._own.bell.ring()  # room in the window

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  Kombu's
        """Remove a message for good, or give it back to its old place."""
        if requeue:
            self.give_back([delivery_tag])
        else:
            self._intake.ack([delivery_tag])
        self.qos.ack(delivery_tag)
        self._own.bell.ring()

    def give_back(self, tags: list[str]) -> None:
        """Messages go back to their queues; not from a child, where they are the parent's."""
        if self._pid == os.getpid():
            self._intake.release(tags)

    def _restore(self, message: Any) -> None:
        self.give_back([message.delivery_tag])

    def _up_to(self, delivery_tag: str) -> list[str]:
        tags = list(self.qos._delivered)  # noqa: SLF001  Kombu's only list of them
        return tags[: tags.index(delivery_tag) + 1] if delivery_tag in tags else [delivery_tag]

    def drain(self) -> int:
        """Hand out what is due; gives how many messages. Raises as `Intake.fetch` does, and what the application's callbacks raise."""
        self._intake.check()
        count = self._hand_out()
        for queue in self._intake.due():
            take = self._room() if self._intake.is_acked(queue) else BATCH
            if take and not self.closed and queue in self._active_queues:
                self._inbox.extend((queue, delivery) for delivery in self._intake.fetch(queue, take))
                self.connection.answered()
                count += self._hand_out()
        return count

    def next_look(self) -> float:
        """When to drain again, by the monotonic clock, unless the bell rings before: with a full window, not before there is room."""
        return self._intake.next_look(room=self._room() > 0)

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:  # noqa: ARG002  Kombu's
        """As `drain`; Kombu's own signature."""
        self.drain()

    def _room(self) -> int:
        room = self.qos.can_consume_max_estimate()
        return BATCH if room is None else min(BATCH, room)

    def _hand_out(self) -> int:
        count = 0
        while self._inbox and not self.closed:
            queue, delivery = self._inbox[0]
            if queue not in self.connection._callbacks:  # noqa: SLF001  Kombu's only list of them
                self._return_inbox(queue)
                continue
            self._inbox.popleft()
            count += 1
            self.connection._deliver(self._raw(delivery), queue)  # noqa: SLF001  Kombu's way to the callback
        return count

    def _raw(self, delivery: Delivery) -> dict[str, Any]:
        raw: dict[str, Any] = loads(delivery.message)
        raw["properties"]["delivery_tag"] = delivery.tag
        raw["properties"].setdefault("delivery_info", {})["redelivered"] = delivery.lease > 1
        return raw

    def _return_inbox(self, queue: str | None = None) -> None:
        """What was fetched and not handed out goes back: given, or put anew when nobody was to acknowledge it."""
        kept: list[tuple[str, Delivery]] = []
        while self._inbox:
            name, delivery = self._inbox.popleft()
            if queue not in {None, name}:
                kept.append((name, delivery))
            elif self._intake.holds(delivery.tag):
                self._intake.release([delivery.tag])
            else:
                message = loads(delivery.message)
                self._own.broker.put(name, envelope_of(message, delivery.priority)._replace(available_at=None))
        self._inbox.extend(kept)

    def close(self) -> None:
        """Consume no more and give everything back; from a child: only forget it, it is the parent's."""
        if not self.closed and self._pid == os.getpid():
            with self.connection.forgiving():
                self._return_inbox()
        intake = self._intake
        super().close()
        if self._pid == os.getpid():
            intake.close()
