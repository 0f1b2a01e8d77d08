"""Owns what the probes of the worker's inside share: options, and one JSON document out with medians, all rounds and ratios.

It must not decide what is measured. The benchmarks beside peers are `python -m bench`; they share nothing with these scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from jobrunner import migrate
from jobrunner.embedded import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE = "jobrunner_bench"


def arguments(description: str, **sizes: int) -> argparse.Namespace:
    """`--rounds` and one option for each size, with its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


@contextlib.contextmanager
def database() -> Iterator[str]:
    """A freshly migrated database on disk, on a server with PostgreSQL's default durability."""
    with contextlib.ExitStack() as stack:
        admin = os.environ.get("JOBRUNNER_BENCH_DSN")
        if not admin:
            directory = Path(tempfile.mkdtemp(prefix="jobrunner-bench-", dir="/var/tmp"))
            directory.chmod(0o711)
            server = Server(directory / "pg", options={"shared_buffers": "512MB", "max_connections": "100", "max_wal_size": "4GB"})
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            stack.callback(server.destroy)
            admin = server.start()
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {DATABASE}")
        dsn = re.sub(r"(?<=://)([^/]*)/[^?]*", rf"\1/{DATABASE}", admin, count=1)
        migrate.upgrade(dsn)
        yield dsn


def empty(dsn: str) -> None:
    """Empty the tables and let the server settle, so that each round starts alike."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "TRUNCATE jobrunner.jobs, jobrunner.job_history, jobrunner.job_attempts,"
            " jobrunner.rollup_pending, jobrunner.rollup_minute, jobrunner.rollup_hour"
        )
        connection.execute("VACUUM ANALYZE jobrunner.jobs")
        connection.execute("CHECKPOINT")


def report(script: str, unit: str, figures: dict[str, list[float]], ratios: dict[str, tuple[str, str, float]], **facts: Any) -> None:
    """Print one JSON document: medians, all figures, ratios against their first targets, the machine.

    Args:
        ratios: name → (ours, the alternative, first target of ours / alternative).
    """
    medians = {name: statistics.median(values) for name, values in figures.items()}
    document = {
        "script": script,
        "unit": unit,
        "medians": {name: round(value, 3) for name, value in medians.items()},
        "rounds": {name: [round(value, 3) for value in values] for name, values in figures.items()},
        "ratios": {
            name: {"ratio": round(medians[ours] / medians[other], 3), "first_target": target, "of": f"{ours} / {other}"}
            for name, (ours, other, target) in ratios.items()
        },
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "psycopg": psycopg.__version__},
        **facts,
    }
    print(json.dumps(document, indent=2))
