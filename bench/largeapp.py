"""Owns an application that is large to import: 300 modules of its own, Flask and SQLAlchemy.

It must not be imported: it is written to a directory, for workers that a bench starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MODULES = 300

MODULE = '''"""Module {number} of a large application."""

import dataclasses
import functools
import re

PATTERN = re.compile(r"^item-{number}-(\\\\d+)$")
TABLE = {{f"key-{{n}}": list(range(n % 7)) for n in range(200)}}


@dataclasses.dataclass
class Item{number}:
    """Something that the application knows."""

    id: int
    name: str = "item"
    tags: list[str] = dataclasses.field(default_factory=list)

    def label(self) -> str:
        return f"{{self.id}}: {{self.name}} ({{', '.join(self.tags)}})"


@functools.lru_cache
def price{number}(item: int) -> int:
    return sum(TABLE[f"key-{{item % 200}}"]) + item
'''

APP = """import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import sqlalchemy.orm
from flask import Flask

from jobrunner import JobRunner, current_job
{imports}

app = Flask(__name__)
jobs = JobRunner(app)


@jobs.task
def hold(number: int) -> None:
    current_job().progress(0.5)
    time.sleep(600)


@jobs.task
def noop(number: int = 0, argument: float = 0) -> None:
    pass
"""


def write_app(directory: Path) -> str:
    """Write it; the path of its file."""
    package = directory / "large"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    for number in range(MODULES):
        (package / f"module_{number}.py").write_text(MODULE.format(number=number))
    imports = "\n".join(f"import large.module_{number}" for number in range(MODULES))
    file = directory / "large_app.py"
    file.write_text(APP.format(imports=imports))
    return str(file)
