"""Owns what the probes of the worker's inside share: options, and one JSON document out with medians, all rounds and ratios.

It must not decide what is measured. The benchmarks beside peers are `python -m bench`; they share nothing with these scripts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from typing import Any

import psycopg


def arguments(description: str, **sizes: int) -> argparse.Namespace:
    """`--rounds` and one option for each size, with its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


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
