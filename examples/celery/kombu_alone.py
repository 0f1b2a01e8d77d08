"""Kombu without Celery: `python -m examples.celery.kombu_alone put TEXT`, and `get`."""

import os
import sys

from kombu import Connection

import jobrunner.compat.kombu  # noqa: F401  registers jobrunner://


def main(do, *texts):
    with Connection(os.environ["BROKER_URL"]) as connection, connection.SimpleQueue("notes") as queue:
        for text in texts:
            queue.put(text)
        if do == "get":
            message = queue.get(timeout=10)
            print(message.payload)
            message.ack()


if __name__ == "__main__":
    main(*sys.argv[1:])
