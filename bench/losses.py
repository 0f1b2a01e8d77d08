"""Jobs lost, doubled and stuck, side by side with how Flask people run background work today.

Four scenarios with real servers, real workers and a ledger that every job writes to: kill -9 in the middle of the work, jobs longer than
the visibility timeout, jobs due later than it, and jobs enqueued inside a transaction that is rolled back. Prints a Markdown table; exits
with 1 when one of our own rows has a job lost, or doubled with no crash to blame. See docs/explanation/lost-and-doubled.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine, servers
from bench.contenders import Broken
from bench.environments import ROOT, Absent, BadHeader, Peer, peers
from bench.losing import report
from bench.losing.scenarios import SCENARIOS, Sizes
from bench.losing.stage import Stage
from jobrunner.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACE = ROOT / "bench" / "losses_peers"
ORDER = (
    "celery_redis",
    "celery_redis_late",
    "flask_executor",
    "huey_postgres",
    "celery_sqlalchemy",
    "celery_pgmq",
    "rq",
    "procrastinate",
    "pgqueuer",
    "oban",
    "celery_jobrunner_early",
    "celery_jobrunner",
    "jobrunner",
    "jobrunner_embedded",
)
OURS = ("celery_jobrunner", "jobrunner", "jobrunner_embedded")
"""Rows that decide about the exit code. `celery_jobrunner_early` is none of them: Celery itself gives away what it runs."""
TRANSACTIONAL = ("jobrunner", "jobrunner_embedded")
"""Rows that promise to join the caller's transaction; Celery's producers have connections of their own, with any broker."""
TRIAL = Sizes(jobs=40, seconds=0.25, watch=60.0, timeout=4.0, beyond=3.0, few=2)
"""A lease of 4 s is renewed every 1.3 s: shorter, and a machine that is busy with the tests would stall a healthy worker for as long."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    raw = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(prog="python -m bench losses", description=__doc__, formatter_class=raw)
    options.add_argument("--rounds", type=int, default=1, help="of everything; the table then has the least and the most (default 1)")
    options.add_argument("--peers", metavar="NAME,…", help=f"only these of {', '.join(ORDER)}; 'ours' for {', '.join(OURS)}")
    options.add_argument("--scenarios", metavar="NAME,…", help=f"only these of {', '.join(SCENARIOS)}")
    options.add_argument("--trial", action="store_true", help="tiny sizes, to see that everything works")
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there too")
    for field in fields(Sizes):
        kind = int if field.type == "int" else float
        options.add_argument(f"--{field.name}", type=kind, help=f"default {field.default:g}, in a trial {getattr(TRIAL, field.name):g}")
    return options


def sizes_of(given: argparse.Namespace) -> Sizes:
    """The sizes. Raises ValueError for one that makes no sense."""
    base = TRIAL if given.trial else Sizes()
    sizes = Sizes(**{name: getattr(given, name) if getattr(given, name) is not None else value for name, value in asdict(base).items()})
    if wrong := [f"--{name} {value:g}" for name, value in asdict(sizes).items() if value <= 0]:
        raise ValueError(f"{', '.join(wrong)}: must be above 0")
    if given.rounds < 1:
        raise ValueError(f"--rounds {given.rounds}: must be above 0")
    return sizes


def chosen(wanted: str | None, known: Sequence[str], what: str, more: dict[str, Sequence[str]] | None = None) -> list[str]:
    """The names in a list with commas, in the known order; all without one. Raises ValueError for an unknown one."""
    if wanted is None:
        return list(known)
    names = {name for part in wanted.split(",") for name in (more or {}).get(part.strip(), (part.strip(),))}
    if unknown := sorted(names - set(known)):
        raise ValueError(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def facts_of(peer: Peer, running: servers.Servers) -> dict[str, Any]:
    """Title, promise, versions and the timeout that cannot be set; or why the contender is absent."""
    entry: dict[str, Any] = {
        "title": peer.title,
        "ours": peer.name in OURS,
        "transactional": peer.name in TRANSACTIONAL,
        "promise": peer.durability,
        "rounds": [],
    }
    try:
        with Stage(peer, running, None) as stage:
            return entry | {"versions": stage.versions, "fixed_timeout": stage.setting["fixed_timeout"]}
    except Absent as why:
        return entry | {"absent": str(why)}
    except Broken as why:
        return entry | {"rounds": [{"start": {"failed": str(why)}}]}


def one(peer: Peer, running: servers.Servers, scenario: str, sizes: Sizes) -> dict[str, Any]:
    """The figures of a contender in a scenario, or why there are none."""
    print(f"losses: {peer.title}: {scenario}", file=sys.stderr, flush=True)
    try:
        figures = SCENARIOS[scenario](peer, running, sizes)
    except Absent as why:
        figures = {"absent": str(why)}
    except Broken as why:
        figures = {"failed": str(why)}
    print(f"losses:   {figures}", file=sys.stderr, flush=True)
    return figures


def measure(names: Sequence[str], scenarios: Sequence[str], sizes: Sizes, rounds: int) -> report.Document:
    """The document."""
    found = peers(PLACE)
    with servers.running() as running:
        entries = {name: facts_of(found[name], running) for name in names}
        for _ in range(rounds):
            for name, entry in entries.items():
                if "absent" not in entry and not any("start" in round_ for round_ in entry["rounds"]):
                    entry["rounds"].append({scenario: one(found[name], running, scenario, sizes) for scenario in scenarios})
        return {
            "format": report.FORMAT,
            "measured_at": machine.now(),
            "sizes": asdict(sizes),
            "machine": machine.facts(),
            "servers": running.facts(),
            "contenders": entries,
        }


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 when ours lost or doubled something or anything broke, 2 for bad input."""
    given = parser().parse_args(arguments)
    try:
        sizes = sizes_of(given)
        names = chosen(given.peers, ORDER, "contender", {"ours": OURS})
        scenarios = chosen(given.scenarios, tuple(SCENARIOS), "scenario")
    except ValueError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: servers and workers go with us
    try:
        document = measure(names, scenarios, sizes, given.rounds)
    except (EmbeddedError, BadHeader) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("losses: interrupted; servers and workers are gone", file=sys.stderr)
        return 130
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    print(report.table(document), report.notes(document), sep="\n\n")
    wrong = report.faults(document)
    for fault in wrong:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
