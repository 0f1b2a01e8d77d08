"""Owns the dashboard and the HTTP API: one Flask blueprint over the library's public verbs.

It must not see the store, the worker or any SQL. Imports of itself are relative: the wheel holds it as `jobrunner.webapp`, a
checkout as `webapp`; `jobrunner.web` is the way in for both.
"""

from . import access
from .application import create, mount

__all__ = ["access", "create", "mount"]
