"""Writes docs/benchmarks.md from the JSON documents of `bench/results`; no figure stands here, and none is on the page by hand.

It must not measure. `python tools/benchmarks.py` writes the page; `python -m bench` measures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from bench.catalogue import SCENARIOS  # noqa: E402  after the path
from bench.environments import peers  # noqa: E402
from bench.figures import Best, Document, Verdict, losses, median, rounds_of, spread  # noqa: E402
from bench.suite import read  # noqa: E402
from bench.targets import TARGETS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.figures import Bound
    from bench.suite import Scenario

RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
LESS = "less"  # how the durability of a contender begins that is not as durable as PostgreSQL
ALIKE = 1.05  # a difference below this is within the noise of a median of three
GIB = 1 << 30
HUNDREDS, TENS = 100, 10  # from which on a number is shown without, and with one, decimal


class Column(NamedTuple):
    """How a figure is shown."""

    heading: str
    higher_is_better: bool


COLUMNS = {
    "jobs_per_second": Column("jobs/s", higher_is_better=True),
    "last_tenth_per_second": Column("jobs/s, last tenth", higher_is_better=True),
    "us_per_job": Column("µs/job", higher_is_better=False),
    "p50_ms": Column("p50, ms", higher_is_better=False),
    "p95_ms": Column("p95, ms", higher_is_better=False),
    "p99_ms": Column("p99, ms", higher_is_better=False),
    "cpu_percent": Column("CPU, % of a core", higher_is_better=False),
    "worker_cpu_percent": Column("of it workers", higher_is_better=False),
    "queries_per_second": Column("statements/s", higher_is_better=False),
    "memory_mb": Column("memory, MB", higher_is_better=False),
    "connections": Column("connections", higher_is_better=False),
    "cpu_ms_per_job": Column("CPU s/1,000 jobs", higher_is_better=False),
    "server_cpu_ms_per_job": Column("of it server", higher_is_better=False),
    "wal_bytes_per_job": Column("WAL KB/1,000 jobs", higher_is_better=False),
    "connections_per_worker": Column("connections/worker", higher_is_better=False),
    "memory_mb_per_worker": Column("memory/worker, MB", higher_is_better=False),
    "ran_twice": Column("ran twice", higher_is_better=False),
    "claimed_twice": Column("claimed twice", higher_is_better=False),
}
"""Milliseconds a job are seconds for 1,000 jobs, and bytes a job are KB for 1,000 jobs."""

HEAD = """# Benchmarks

<!-- Written by `python tools/benchmarks.py` from bench/results/*.json. Do not edit: a test compares. -->
"""
EMPTY = """**Not measured yet.** There are no published results: they have to come from a quiet machine. What is measured, against whom, and
what is demanded is below; `make bench` measures it on your machine and writes a page like this one.
"""
RERUN = """## How to measure it yourself

```console
$ make bench                                  # short: every scenario, fewer peers in some; about ten minutes
$ make bench-full                             # full sizes, every peer; about two hours
$ make bench ONLY="drain pickup-idle"         # some scenarios
$ make bench ARGS="--peers pgqueuer,celery"   # some peers; --list shows all
$ make bench ARGS="--trial"                   # a tenth of the sizes, one round: does everything work here?
```

The bench makes an environment for each peer below `.bench/`, starts a PostgreSQL and a Redis of its own on sockets of its own, and ends
them. Redis has to be on `PATH` (`apt-get install redis-server`; the service need not run), or `BENCH_REDIS_SERVER` names the program;
without it its peers are reported as absent.
Results go to `.bench/results/*.json`, and a page like this one is written beside them. `--publish` writes `bench/results` and this page,
and refuses while other processes use more than 5 % of the machine, for a trial, for a part of the peers, or for sizes set by hand.

A peer is one file, `bench/peers/NAME/adapter.py`: requirements and a class of a dozen short methods. If one is not at its best here, send
a better setting.

## How it is measured

- **Interleaved.** All contenders of a table run in turn, round after round, every second round backwards. Figures are medians of the
  rounds, with the smallest and the largest in parentheses; ratios are between medians of one run, never across runs or machines.
- **Watched.** Virtual cores share theirs with strangers, whom no figure of load shows. So a fixed piece of work (look-ups in a large
  dictionary, on all cores at once) is timed before and after each measurement; below each table is how far that went apart. Two
  figures that differ by less are alike.
- **Alike.** The tasks are the same for everybody and count themselves, in a page of shared memory. The clock of a drain starts with the
  first job, not with the process, and stops when the queue says that nothing is left: the last commit counts.
- **Whole.** CPU is that of all processes of the worker, ended ones included, and of the server. Memory is proportional set size.
- **At their best.** Each peer runs at its defaults and at the best settings that its documentation has or that we found; both are in the
  tables.
- **Durable.** PostgreSQL runs with `fsync` and `synchronous_commit` on. Where a peer promises less, its row in the list of contenders says
  so; what it takes to promise as much is in the rows named `flushed`, of the drain and of single enqueues.
"""


def number(value: float) -> str:
    """With three or more significant digits, and no decimals that say nothing."""
    if value == 0 or abs(value) >= HUNDREDS:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= TENS else f"{value:.2g}" if abs(value) < 1 else f"{value:.2f}"


def shown(rounds: Sequence[float]) -> str:
    """A median with its spread."""
    low, high = spread(rounds)
    return number(median(rounds)) if low == high else f"{number(median(rounds))} ({number(low)}–{number(high)})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def page(documents: Mapping[str, Document]) -> str:
    """The whole page."""
    parts = [HEAD]
    if not documents:
        parts.append(EMPTY)
    elif doubts := {doubt for document in documents.values() for doubt in document["doubts"]}:
        parts.append(f"**Not for publication:** {'; '.join(sorted(doubts))}.\n")
    if documents:
        parts.append(losing(documents))
    parts.append(targets(documents))
    parts += [scenario_part(scenario, documents.get(scenario.name)) for scenario in SCENARIOS.values()]
    parts += [contenders(documents), machines(documents), RERUN]
    return "\n".join(part for part in parts if part)


def losing(documents: Mapping[str, Document]) -> str:
    """What a reader should know first."""
    lines = ["## Where we lose\n"]
    for name, scenario in SCENARIOS.items():
        column = COLUMNS[scenario.figure]
        document = documents.get(name)
        if document is None:
            continue
        found = losses(document, scenario.figure, higher_is_better=column.higher_is_better)
        for ours in dict.fromkeys(ours for ours, _, _ in found):
            mine = number(median(rounds_of(document, ours, scenario.figure)))
            rivals = sorted((_promises_less(document, rival), -times, rival) for name, rival, times in found if name == ours)
            told = "; ".join(_rival(document, scenario.figure, rival, -times) for _, times, rival in rivals)
            lines.append(f"- {scenario.title}: {ours} has {mine} {column.heading}. Ahead: {told}.")
        lines += other_columns(scenario, document)
    lines += [
        f"- Target {target.number} is not met: {target.words} ({'; '.join(reached(bound, documents) for bound in target.bounds)})."
        for target in TARGETS
        if target.verdict(documents) is Verdict.NOT_MET
    ]
    lines += [
        f"- {SCENARIOS[name].title}: {entry} failed: {result['failed'].splitlines()[0]}"
        for name, document in documents.items()
        if name in SCENARIOS
        for entry, result in document["entries"].items()
        if result.get("failed")
    ]
    if unmeasured := [scenario.title for name, scenario in SCENARIOS.items() if name not in documents]:
        lines.append(f"- Not measured, so nothing can be said: {'; '.join(unmeasured)}.")
    if len(lines) == 1:
        lines.append("In none of what was measured is a peer ahead, and every target is met.")
    return "\n".join(lines) + "\n"


def _promises_less(document: Document, entry: str) -> bool:
    return str(document["entries"][entry]["durability"]).startswith(LESS)


def _rival(document: Document, figure: str, rival: str, times: float) -> str:
    close = ", within the noise" if times < ALIKE else ""
    less = ", promises less" if _promises_less(document, rival) else ""
    return f"{rival} {number(median(rounds_of(document, rival, figure)))} ({times:.2f} times{close}{less})"


def other_columns(scenario: Scenario, document: Document) -> list[str]:
    """A line for what a scenario measures beside its headline, where a peer is ahead by more than the noise: the furthest one of each."""
    found: dict[str, list[str]] = {}
    for figure, column in COLUMNS.items():
        if figure == scenario.figure or column.heading.startswith("of it"):
            continue
        furthest: dict[str, tuple[str, float]] = {}
        for ours, rival, times in losses(document, figure, higher_is_better=column.higher_is_better):
            if times >= ALIKE:
                furthest.setdefault(ours, (rival, times))
        for ours, (rival, times) in furthest.items():
            mine = number(median(rounds_of(document, ours, figure)))
            found.setdefault(column.heading, []).append(f"{ours} {mine}, {_rival(document, figure, rival, times)}")
    told = "; ".join(f"{heading}: {', '.join(pairs)}" for heading, pairs in found.items())
    return [f"- {scenario.title}, beside that: {told}."] if told else []


def reached(bound: Bound, documents: Mapping[str, Document]) -> str:
    """What a bound came to, in words."""
    value = bound.reached(documents)
    if value is None:
        return "not measured"
    against = bound.against.winner(documents) if isinstance(bound.against, Best) else bound.against and bound.against.entry
    of = f" {against}" if against else ""
    told = f"{value:.2f}" if against else number(value)
    return f"{told} {bound.unit}{of}, demanded {bound.sense} {bound.limit:,g}"


def targets(documents: Mapping[str, Document]) -> str:
    """The list of demands."""
    rows = [
        [
            str(target.number),
            target.words,
            "<br>".join(reached(bound, documents) for bound in target.bounds),
            f"**{target.verdict(documents)}**",
        ]
        for target in TARGETS
    ]
    return "## Targets\n\n" + table(["#", "target", "reached", ""], rows)


def scenario_part(scenario: Scenario, document: Document | None) -> str:
    """A scenario with its table."""
    parts = [f"## {scenario.title}\n", f"{scenario.about}\n"]
    if document is None:
        return "\n".join([*parts, "Not measured yet.\n"])
    measured = {name: entry for name, entry in document["entries"].items() if entry["figures"] and not entry.get("failed")}
    columns = [figure for figure in COLUMNS if any(figure in entry["figures"] for entry in measured.values())]
    higher = COLUMNS[scenario.figure].higher_is_better
    order = sorted(measured, key=lambda name: median(measured[name]["figures"][scenario.figure]) * (-1 if higher else 1))
    rows = [
        [
            f"**{name}**" if measured[name]["kind"] == "ours" else name,
            *(shown(measured[name]["figures"][figure]) if figure in measured[name]["figures"] else "–" for figure in columns),
            ahead(scenario, document, name),
            measured[name]["described"],
        ]
        for name in order
    ]
    heads = ["", *(COLUMNS[figure].heading for figure in columns), "Jobrunner ahead", "settings"]
    few = document["suite"] != "full" and scenario.short_peers is not None
    if few:
        parts.append("In the short suite only some of the peers take part here.\n")
    sizes = ", ".join(f"{name} {value:,g}" for name, value in document["sizes"].items())
    parts.append(table(heads, rows))
    parts += [f"{line}\n" for line in left_out(document)]
    parts.append(
        f"{document['suite'].capitalize()} suite, rounds: {document['rounds']}, {sizes}; {document['measured_at']}, revision "
        f"{document['machine']['revision'] or 'unknown'}; others used {document['others_share']:.1%} of the machine{own_pace(document)}.\n"
    )
    return "\n".join(parts)


def own_pace(document: Document) -> str:
    """How far the machine itself was from steady meanwhile, in words; empty where nobody looked."""
    paces = [one for entry in document["entries"].values() for one in entry.get("pace", [])]
    if not paces:
        return ""
    slowest, fastest = spread(paces)
    return f"; its own pace, on a fixed piece of work beside each measurement, was {slowest:.2f} to {fastest:.2f} million look-ups a second"


def ahead(scenario: Scenario, document: Document, name: str) -> str:
    """How many times better ours of the same rank is at the headline figure; below 1, worse. Empty where nothing is to be compared."""
    entry = document["entries"][name]
    ours = [
        median(rounds_of(document, other, scenario.figure))
        for other, rival in document["entries"].items()
        if rival["kind"] == "ours" and rival["rank"] == entry["rank"] and rounds_of(document, other, scenario.figure)
    ]
    theirs = median(entry["figures"][scenario.figure])
    if entry["kind"] == "ours" or not entry["rank"] or not ours or theirs <= 0:
        return ""
    higher = COLUMNS[scenario.figure].higher_is_better
    best = max(ours) if higher else min(ours)
    return "" if best <= 0 else f"{best / theirs if higher else theirs / best:.2f} ×"


def left_out(document: Document) -> Iterator[str]:
    """Who is not in the table, and why; those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, entry in document["entries"].items():
        if reason := entry.get("absent") or (entry.get("failed") and f"failed: {entry['failed'].splitlines()[0]}"):
            reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"Not in the table: {', '.join(names)}: {reason}."


def contenders(documents: Mapping[str, Document]) -> str:
    """Who takes part, at which versions, with which durability."""
    versions: dict[str, dict[str, str]] = {}
    for document in documents.values():
        for name, found in document["versions"].items():
            versions.setdefault(name, {}).update(found)
    rows = [
        [
            peer.title,
            ", ".join(f"{name} {version}" for name, version in versions.get(peer.name, {}).items()) or "–",
            peer.server,
            peer.durability,
        ]
        for peer in peers().values()
    ]
    return "## Contenders\n\n" + table(["", "versions measured", "server", "durability beside ours"], rows)


def machines(documents: Mapping[str, Document]) -> str:
    """Where it was measured; more than one row means that figures of different tables must not be compared."""
    seen: dict[str, list[str]] = {}
    for document in documents.values():
        machine, running = document["machine"], document["servers"]
        settings = " ".join(f"{name}={value}" for name, value in running["postgresql"]["settings"].items())
        redis = running["redis"]
        on = (
            f"Redis {redis['version']} ({' '.join(f'{name}={value}' for name, value in redis['settings'].items() if value)})"
            if redis
            else "no Redis"
        )
        row = [
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / GIB:.0f} GiB",
            machine["kernel"],
            f"Python {machine['python']}",
            f"PostgreSQL {running['postgresql']['version']} ({settings}); {on}",
        ]
        seen.setdefault("\n".join(row), row)
    if not seen:
        return ""
    return "## Machine\n\n" + table(["CPU and memory", "kernel", "Python", "servers"], list(seen.values()))


def write() -> Path:
    """Write the page from what is published."""
    PAGE.write_text(page(read(RESULTS)))
    return PAGE


if __name__ == "__main__":
    try:
        print(write().relative_to(ROOT))
    except ValueError as wrong:
        sys.exit(f"error: {wrong}")
