"""Who may import whom, as pyproject.toml says, and that the contract type of our own really refuses."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.commands import run

ROOT = Path(__file__).resolve().parents[2]
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"


def test_the_checkout_keeps_its_contracts():
    """Every module stands in a layer and imports only from where it may."""
    found = run(sys.executable, "-c", LINT, cwd=ROOT, ok=False)
    assert found.returncode == 0, found.stdout


def test_a_forbidden_import_is_refused(tmp_path):
    """The allow list refuses a module nobody listed, names the line, and lets the listed one through."""
    for name in ("tools/contracts.py",):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name, text in {"site/__init__.py": "", "site/page.py": "import lib.verbs\nimport lib.store\n", "lib/__init__.py": ""}.items():
        path = tmp_path / name.replace("site/", "pages/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for name in ("verbs", "store"):
        (tmp_path / "lib" / f"{name}.py").write_text("")
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_packages=\n  pages\n  lib\ncontract_types=\n  only: tools.contracts.OnlyContract\n"
        "[importlinter:contract:1]\nname=n\ntype=only\nimporters=\n  pages\nwithin=\n  lib\nallowed=\n  lib.verbs\n"
    )
    found = run(sys.executable, "-c", LINT, cwd=tmp_path, ok=False)
    assert found.returncode == 1
    assert "pages.page imports lib.store (line 2)" in found.stdout
    assert "imports lib.verbs" not in found.stdout
