"""Owns the small helpers that code imports from `celery.utils`."""

from __future__ import annotations

from uuid import uuid4

__all__ = ["gen_unique_id", "uuid"]


def uuid() -> str:
    """A new task id."""
    return str(uuid4())


gen_unique_id = uuid
