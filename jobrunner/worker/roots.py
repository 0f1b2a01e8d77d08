"""Owns from where else than by its own path a worker imports the application: from where the server that started it did.

It must not import it. Of the whole process, as `sys.path` is; the process that imports the application is told the same.
"""

from __future__ import annotations

import site
import sys

added: list[str] = []


def add(directory: str) -> None:
    """Import from this directory too.

    Behind the standard library: a file of the application that is called `queue.py` is not that module. Before what is installed: nor is an
    installed copy the application that the server serves. Not by PYTHONPATH, which programs that jobs start would inherit.
    """
    if directory not in added:
        added.append(directory)
    if directory not in sys.path:
        installed = {*site.getsitepackages(), site.getusersitepackages()}
        places = [number for number, known in enumerate(sys.path) if known in installed]
        sys.path.insert(places[0] if places else len(sys.path), directory)
