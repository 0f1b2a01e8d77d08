"""Owns the bench's addresses as libraries want them that do not take them as they are."""

from __future__ import annotations


def for_kombu(redis: str) -> str:
    """`unix://PATH?db=NUMBER` for Kombu and Celery.

    Kombu takes the number of the database behind a socket from `virtual_host`, and with `db` it silently uses number 0: what the bench
    empties and looks into would be another database than the one that messages are in.

    Source: kombu 5.7.0, transport/redis.py, Channel._connparams; celery 5.7.0, backends/redis.py, _params_from_url.
    """
    return redis.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)
