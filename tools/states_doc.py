"""Writes the diagram and the table of docs/reference/states.md from `jobrunner.states`; the rest of the page is written by hand."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "states.md"
FIRST_LINE = re.compile(r"-- (?P<name>\w+): (?P<sources>[a-z, ]+?) -> (?P<target>\w+)[;,] (?P<what>.+?)(?:\. .*|\.?$)")

if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from jobrunner import statements  # noqa: E402  after the path
from jobrunner.states import LIVE, TRANSITIONS, State  # noqa: E402
from tools.generated import Marks  # noqa: E402

MARKS = Marks.of("python tools/states_doc.py")


def headline(name: str) -> re.Match[str]:
    """The first line of a transition's file, in parts: name, sources, target, what it does."""
    found = FIRST_LINE.match(statements.source(name).splitlines()[0])
    if found is None:
        raise ValueError(f"{name}.sql does not begin with '-- {name}: source -> target; what it does'")
    return found


def diagram() -> str:
    """The states and transitions as a Mermaid diagram."""
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for transition in TRANSITIONS:
        for source in State:
            if source in transition.sources:
                edges[source, transition.target].append(transition.name)
    lines = ["stateDiagram-v2", "    [*] --> queued : enqueue"]
    lines += [f"    {source} --> {target} : {', '.join(names)}" for (source, target), names in edges.items()]
    lines += [f"    {state} --> [*] : retention" for state in State if state not in LIVE]
    return "\n".join(["```mermaid", *lines, "```"])


def table() -> str:
    """The transitions, one a row."""
    rows = ["| transition | from | to | asked by | lease checked | what happens |", "|---|---|---|---|---|---|"]
    for transition in TRANSITIONS:
        sources = ", ".join(state for state in State if state in transition.sources)
        fenced = "yes" if transition.fenced else "–"
        what = headline(transition.name)["what"]
        rows.append(f"| `{transition.name}` | {sources} | {transition.target} | {transition.by} | {fenced} | {what} |")
    return "\n".join(rows)


def generated() -> str:
    """All that stands between the marks."""
    return f"{diagram()}\n\n{table()}"


def updated(page: str) -> str:
    """The page with its generated part replaced. Raises ValueError when the marks are missing."""
    return MARKS.replaced(page, generated())


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
    print(PAGE.relative_to(ROOT))
