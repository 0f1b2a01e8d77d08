# /// script
# requires-python = ">=3.11"
# dependencies = ["celery[redis]==5.7.0", "kombu==5.7.0", "redis==8.1.0", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Celery + Redis, late acks"
# server = "redis"
# durability = "at least once, once the visibility timeout (1 h unless set) is over"
# ///
"""Celery on Redis with late acknowledgement."""

from __future__ import annotations

from celeries import SAFE
from protocol import serve
from redisbroker import RedisContender


class Late(RedisContender):
    """`task_acks_late` and `task_reject_on_worker_lost`."""

    settings = SAFE


if __name__ == "__main__":
    serve(Late())
