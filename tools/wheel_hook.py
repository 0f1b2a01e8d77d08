"""Places `migrations/` and `webapp/` inside the `jobrunner` package of a wheel.

A top-level `webapp` in site-packages would collide with a user's own. Editable installs get nothing: there both directories
are found beside the package, and a copy would go stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACED = ("migrations", "webapp")


class WheelHook(BuildHookInterface[Any]):
    """Run by hatchling before it writes a wheel; in the sdist it finds the same two directories at the same place."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add both directories to a real wheel (`version` is `standard`), refuse to build one without them."""
        if version != "standard":
            return
        for name in PLACED:
            source = Path(self.root) / name
            if not any(source.glob("*.py")):
                raise FileNotFoundError(f"{source} has no Python file: the wheel would lack jobrunner/{name}")
            build_data["force_include"][str(source)] = f"jobrunner/{name}"
