"""Owns what the demonstration finds out about a Python file: its size, and how complex its functions are.

It must not run what it reads.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Each is one more way through a function: https://en.wikipedia.org/wiki/Cyclomatic_complexity. An `assert` is not: tests are full of them.
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True, slots=True)
class Function:
    """A function, by the names it stands in.

    Attributes:
        name: `Class.method` where it is one.
        line: of its `def`.
        complexity: independent ways through it; 1 for straight code.
    """

    name: str
    line: int
    complexity: int


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one file; `worst` is its most complex function, None when it has none."""

    lines: int
    functions: int
    classes: int
    complexity: int
    worst: Function | None


def analyse(source: str) -> Report:
    """Count the lines, functions and classes of a module, and the complexity of each function.

    A nested function counts for itself and not for the one around it. `complexity` of the report is the sum over all functions.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: this Python cannot parse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in somebody's code is no news for the log of a worker
        tree = ast.parse(source)
    found: list[Function] = []
    complexities: list[int] = []
    classes = 0
    # By hand instead of a visitor: generated code nests deeper than Python's own recursion limit.
    pending: list[tuple[ast.AST, str, int | None]] = [(tree, "", None)]
    while pending:
        node, prefix, owner = pending.pop()
        if isinstance(node, _FUNCTIONS):
            owner = len(complexities)
            complexities.append(1)
            found.append(Function(prefix + node.name, node.lineno, 1))
            prefix = f"{prefix}{node.name}."
        elif isinstance(node, ast.ClassDef):
            classes += 1
            prefix = f"{prefix}{node.name}."
        elif owner is not None:
            complexities[owner] += _ways(node)
        pending.extend((child, prefix, owner) for child in ast.iter_child_nodes(node))
    functions = [Function(one.name, one.line, complexity) for one, complexity in zip(found, complexities, strict=True)]
    worst = max(functions, key=lambda function: (function.complexity, -function.line), default=None)
    return Report(source.count("\n") + (not source.endswith("\n") and bool(source)), len(functions), classes, sum(complexities), worst)


def _ways(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, _BRANCHES))
