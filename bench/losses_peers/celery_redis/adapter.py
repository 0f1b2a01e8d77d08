# /// script
# requires-python = ">=3.11"
# dependencies = ["celery[redis]==5.7.0", "kombu==5.7.0", "redis==8.1.0", "SQLAlchemy==2.1.9", "psycopg[binary]==3.3.9"]
#
# [tool.bench]
# title = "Celery + Redis, defaults"
# server = "redis"
# durability = "less: acknowledged before the task runs"
# ///
"""Celery on Redis as it comes."""

from __future__ import annotations

from protocol import serve
from redisbroker import RedisContender

if __name__ == "__main__":
    serve(RedisContender())
