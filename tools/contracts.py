"""Owns the import-linter contract type `only`: an allow list, so that a module nobody thought of is refused, not let through.

It looks at direct imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from grimp import ImportGraph


class OnlyContract(Contract):
    """Of everything inside `within`, `importers` may import `allowed` and nothing else.

    Options:
        importers: packages or modules; their submodules are meant too.
        except_importers: parts of `importers` to which the contract does not apply.
        within: packages whose import is judged.
        allowed: packages or modules of them that may be imported. `name.*` allows what is inside `name`, not `name` itself.
    """

    type_name = "only"

    importers = fields.ListField(subfield=fields.StringField())
    except_importers = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    within = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002, FBT001  import-linter's signature
        """Judge every direct import of the importers."""
        broken = [
            (importer, imported)
            for importer in sorted(graph.modules)
            if _inside(importer, self._names("importers")) and not _inside(importer, self._names("except_importers"))
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if _inside(imported, self._names("within")) and not _inside(imported, self._names("allowed"))
        ]
        return ContractCheck(kept=not broken, metadata={"broken": [_where(graph, *pair) for pair in broken]})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each forbidden import."""
        for line in check.metadata["broken"]:
            output.print_error(f"- {line}", bold=False)

    def _names(self, option: str) -> list[str]:
        value: list[str] = getattr(self, option)
        return value


def _inside(module: str, packages: Iterable[str]) -> bool:
    return any(
        module.startswith(package.removesuffix("*")) if package.endswith(".*") else module == package or module.startswith(f"{package}.")
        for package in packages
    )


def _where(graph: ImportGraph, importer: str, imported: str) -> str:
    details: list[dict[str, Any]] = [dict(detail) for detail in graph.get_import_details(importer=importer, imported=imported)]
    lines = ", ".join(str(detail["line_number"]) for detail in details)
    return f"{importer} imports {imported} (line {lines})"
