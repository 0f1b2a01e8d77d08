"""Makes `.venv`: `run` has what a user installs, `dev` the tools and test libraries besides. Needs nothing but Python 3.11.

It must not install anything outside `.venv`, and does nothing when `pyproject.toml` is what it was at the last time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROFILES = {"run": (), "dev": ("dev",)}
EXTRA = "embedded"
OLDEST_PYTHON = (3, 11)


def group(name: str) -> list[str]:
    """The requirements of a dependency group with the groups it includes; older pips cannot read them by themselves."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [
        requirement
        for entry in groups[name]
        for requirement in (group(entry["include-group"]) if isinstance(entry, dict) else [entry])
    ]


def make(directory: Path, python: str = sys.executable) -> None:
    """Make a virtual environment with pip, or one that another pip can fill where `ensurepip` is missing (bare Debian)."""
    if usable(directory):
        return
    shutil.rmtree(directory, ignore_errors=True)
    if subprocess.run([python, "-m", "venv", str(directory)], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        return
    if subprocess.run([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([python, "-m", "venv", "--without-pip", str(directory)], check=True)
        subprocess.run([python, "-m", "pip", "--python", str(interpreter(directory)), "install", "-qq", "pip"], check=True)
        return
    sys.exit(f"error: {python} cannot make a virtual environment with pip\n  try:   apt-get install python3-venv      (Debian, Ubuntu)")


def usable(directory: Path) -> bool:
    """Whether the environment is there, new enough, and its interpreter still starts (a removed pyenv version breaks it)."""
    python = interpreter(directory)
    probe = f"import sys, pip; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    return python.exists() and subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL, check=False).returncode == 0


def interpreter(directory: Path) -> Path:
    """The Python of an environment."""
    return directory / "bin" / "python"


def install(directory: Path, requirements: list[str]) -> None:
    """Install with the environment's own pip; silent but for errors. A download that broke off is begun again once: pip does not."""
    command = [str(interpreter(directory)), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements]
    # A pip that runs as root warns about it; in an environment of its own there is nothing to warn of.
    env = os.environ | {"PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.run(command, check=False, cwd=ROOT, env=env).returncode != 0:
        subprocess.run(command, check=True, cwd=ROOT, env=env)


def main(profile: str) -> None:
    """Bring `.venv` to the profile and leave its stamp; `dev` is enough for `run` too."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"error: Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed, this is {sys.version.split()[0]}")
    venv = ROOT / ".venv"
    print(f"setting up .venv ({profile}); once, and again when pyproject.toml changes", flush=True)
    make(venv)
    wanted = [requirement for name in PROFILES[profile] for requirement in group(name)]
    install(venv, ["--editable", f".[{EXTRA}]", *wanted])
    for stamp in {"run", profile}:
        (venv / f".{stamp}.stamp").touch()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except subprocess.CalledProcessError as failed:
        sys.exit(f"error: exit code {failed.returncode} of: {' '.join(map(str, failed.cmd))}")
