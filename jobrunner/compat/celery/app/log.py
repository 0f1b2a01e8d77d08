"""Owns the path at which code finds `TaskFormatter`. It must not hold anything of its own."""

from __future__ import annotations

from jobrunner.compat.celery.utils.log import ColorFormatter, TaskFormatter

__all__ = ["ColorFormatter", "TaskFormatter"]
