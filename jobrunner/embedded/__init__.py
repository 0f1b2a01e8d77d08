"""Owns the embedded PostgreSQL: finds binaries, makes a private cluster, starts, watches, stops and removes it.

It must not download anything, touch a configured database, change the mode of a directory it did not make, nor import the
packages that carry the binaries: their own start and stop code runs `useradd`, opens homes and kills by reused process ids.
"""

from __future__ import annotations

from jobrunner.embedded.binaries import find_binaries
from jobrunner.embedded.project import (
    ClusterStatus,
    destroy_project,
    project_server,
    project_status,
    start_project,
    stop_project,
)
from jobrunner.embedded.server import Server

__all__ = [
    "ClusterStatus",
    "Server",
    "destroy_project",
    "find_binaries",
    "project_server",
    "project_status",
    "start_project",
    "stop_project",
]
