"""Takes messages from RabbitMQ into PostgreSQL, or the other way: `python -m examples.message_queue.bridge forth`, or `back`."""

import json
import sys

import pika

from examples.message_queue.after import queue
from examples.message_queue.before import open_channel


def forth():
    channel = open_channel()
    for method, _properties, body in channel.consume("orders"):
        queue.put(json.loads(body), session=None)
        channel.basic_ack(method.delivery_tag)


def back():
    channel = open_channel()
    channel.confirm_delivery()
    for message in queue.consume():
        channel.basic_publish("", "orders", json.dumps(message.body), pika.BasicProperties(delivery_mode=2))


if __name__ == "__main__":
    {"forth": forth, "back": back}[sys.argv[1]]()
