"""Owns reading a statement's plan: which indexes it used, how many rows and buffers it touched. It must not judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql

from jobrunner import statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg

SCAN_NODES = {
    "Seq Scan",
    "Index Scan",
    "Index Only Scan",
    "Bitmap Heap Scan",
    "Bitmap Index Scan",
    "Tid Scan",
    "Tid Range Scan",
    "Sample Scan",
}


class Plan(NamedTuple):
    """What EXPLAIN (ANALYZE, BUFFERS) said: the tree of nodes, and the shared buffers that the whole statement touched."""

    root: dict[str, Any]
    buffers: int

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Every node, parents first."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.get("Plans", ()))

    def scans(self, table: str) -> list[dict[str, Any]]:
        """The nodes that read a table, its partitions included."""
        return [node for node in self.nodes() if node["Node Type"] in SCAN_NODES and node.get("Relation Name", "").startswith(table)]

    def sequential(self, table: str) -> bool:
        """Whether a sequential scan of the table was executed (one in a branch that never ran read nothing)."""
        return any(node["Node Type"] == "Seq Scan" and node["Actual Loops"] for node in self.scans(table))

    def indexes(self) -> set[str]:
        """The indexes the plan names, whether or not their branch was executed."""
        return {node["Index Name"] for node in self.nodes() if "Index Name" in node}

    def rows_read(self, table: str) -> int:
        """Rows fetched from the table: those passed on and those dropped by a filter."""
        dropped = ("Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter")
        return sum(
            round((node["Actual Rows"] + sum(node.get(key, 0) for key in dropped)) * node["Actual Loops"]) for node in self.scans(table)
        )

    def index_buffers(self, index: str) -> int:
        """Buffers touched by the scans of an index, the table's pages that they looked at included."""
        scans = [node for node in self.nodes() if node.get("Index Name") == index]
        return sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in scans)

    def outline(self) -> str:
        """Node types with their relation and index, for the message of a failed assertion."""
        return ", ".join(
            " ".join(str(node[key]) for key in ("Node Type", "Relation Name", "Index Name", "Actual Rows", "Actual Loops") if key in node)
            for node in self.nodes()
        )


def explain(connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any], *, prepared: bool = False) -> Plan:
    """Run a statement under EXPLAIN (ANALYZE, BUFFERS) and roll it back; `prepared` is how workers run it: one plan for all parameters."""
    with connection.transaction(force_rollback=True):
        if prepared:
            row = _executed(connection, name, parameters)
        else:
            row = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statements.load(name), parameters).fetchone()
    assert row is not None
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])


def _executed(connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any]) -> Any:
    order = sorted(statements.parameters(name))
    text = statements.load(name) % {parameter: f"${place}" for place, parameter in enumerate(order, 1)}
    connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    connection.execute(sql.SQL("PREPARE explained AS ") + sql.SQL(text))
    given = sql.SQL("({})").format(sql.SQL(", ").join(parameters[parameter] for parameter in order)) if order else sql.SQL("")
    try:
        return connection.execute(sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained") + given).fetchone()
    finally:
        connection.execute("DEALLOCATE explained")
