"""Runs the scripts of `bench/` one after the other: `benchmarks.py [NAME ...] -- [options for each]`. One fails, all fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench"


def main(arguments: list[str]) -> int:
    """Run the named scripts, or all of them."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, options = arguments[:cut], arguments[cut + 1 :]
    scripts = [BENCH / f"{name}.py" for name in names] or sorted(path for path in BENCH.glob("*.py") if not path.name.startswith("_"))
    failed = 0
    for script in scripts:
        print(f"== {script.stem}", flush=True)
        failed += subprocess.run([sys.executable, str(script), *options], check=False).returncode != 0
    print(f"{len(scripts) - failed} of {len(scripts)} benchmarks ran", flush=True)
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
