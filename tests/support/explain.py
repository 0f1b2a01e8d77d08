"""Owns reading a statement's plan: which indexes it used, how many rows and buffers it touched. It must not judge."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from jobrunner import statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


_numbers = itertools.count()


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


def explain(connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any]) -> Plan:
    """Run a statement under EXPLAIN (ANALYZE, BUFFERS) and roll it back."""
    with connection.transaction(force_rollback=True):
        row = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statements.load(name), parameters).fetchone()
    return _plan_of(row)


def explain_prepared(connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any]) -> Plan:
    """As `explain`, with a plan that is made now and without regard to the parameters."""
    with connection.transaction(force_rollback=True):
        prepared = Prepared(connection)
        prepared.prepare(name)
        return prepared.explain(connection, name, parameters)


class Prepared:
    """Statements that are planned once, without regard to their parameters, as a worker's prepared ones are.

    Args:
        connection: theirs; psycopg prepares nothing on it any more, because it would drop ours with its own at a rollback.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._names: dict[str, str] = {}
        connection.prepare_threshold = None
        connection.execute("SET plan_cache_mode = force_generic_plan")

    def prepare(self, name: str) -> None:
        """Have a statement parsed; it is planned when it is first explained."""
        places = {parameter: number for number, parameter in enumerate(sorted(statements.parameters(name)), 1)}
        text = re.sub(r"%\((\w+)\)s", lambda match: f"${places[match[1]]}", statements.load(name)).replace("%%", "%")
        self._names[name] = f"{name}_{next(_numbers)}"
        self._connection.execute(f"PREPARE {self._names[name]} AS {text}")

    def explain(self, _connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any]) -> Plan:
        """As the function `explain`, with the plan that was made first."""
        values = [parameters[parameter] for parameter in sorted(statements.parameters(name))]
        given = f"({', '.join(['%s'] * len(values))})" if values else ""
        with self._connection.transaction(force_rollback=True), psycopg.ClientCursor(self._connection) as cursor:
            row = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {self._names[name]} {given}", values or None).fetchone()
        return _plan_of(row)


def _plan_of(row: Any) -> Plan:
    assert row is not None
    root = row[0][0]["Plan"]
    return Plan(root, root["Shared Hit Blocks"] + root["Shared Read Blocks"])
