"""Owns the name under which Kombu and Celery know this transport: `jobrunner://user@host/database` as their broker's address.

It must not import anything but that list of names: Kombu loads this package in every process that uses it.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES.setdefault("jobrunner", "jobrunner.compat.kombu.transport:Transport")
