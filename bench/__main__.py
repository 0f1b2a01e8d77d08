"""Owns the command line of the bench: `python -m bench [SCENARIO ...]`.

It must not measure. Results go to `.bench/results`, which git ignores, with a page made from them; only `--publish` writes
`bench/results` and docs/benchmarks.md, and only what was measured in full on a quiet machine.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import accounts, machine, servers, suite
from bench.catalogue import PROBES, SCENARIOS
from bench.environments import PLACE, ROOT, BadHeader, Peer, peers
from bench.figures import MIN_ROUNDS
from jobrunner.errors import EmbeddedError
from tools import benchmarks

PUBLISHED = ROOT / "bench" / "results"
MEASURED = PLACE / "results"
TRIAL_ROUNDS = 1
TRIAL_SHARE = 0.1  # of the short suite's sizes
TRIAL_LEAST = 1  # of any of them
LOOK = 2.0  # seconds at others' use of the machine, before anything is measured


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures Jobrunner beside bare PostgreSQL and its peers. "
        "The first run makes an environment for each peer below .bench/ (about a minute).",
        epilog=f"scenarios: {', '.join(SCENARIOS)}. Probes, each by itself: {', '.join(PROBES)}.",
    )
    options.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="all of them, unless named")
    options.add_argument("--full", action="store_true", help="full sizes and every peer everywhere: about two hours")
    options.add_argument("--trial", action="store_true", help="one round of tiny sizes, to see that everything works; never published")
    options.add_argument("--rounds", type=int, help=f"interleaved rounds, at least {MIN_ROUNDS} (default {MIN_ROUNDS})")
    options.add_argument("--peers", metavar="NAME,…", help="only these beside Jobrunner; 'none' for Jobrunner and the bare ones")
    options.add_argument("--size", action="append", default=[], metavar="NAME=NUMBER", help="another size, such as history=1000000")
    options.add_argument("--results", type=Path, default=MEASURED, metavar="DIR", help="for JSON and page (default .bench/results)")
    options.add_argument("--publish", action="store_true", help="write bench/results and docs/benchmarks.md; needs a quiet machine")
    options.add_argument("--list", action="store_true", help="list scenarios, their sizes, contenders, and probes")
    return options


def by_hand(given: argparse.Namespace, wanted: list[suite.Scenario]) -> suite.Sizes:
    """What `--size` says. Raises ValueError for a size that nothing in this run has."""
    known = {name for scenario in wanted for name in (scenario.full if given.full else scenario.short)}
    sizes: suite.Sizes = {}
    for one in given.size:
        name, equals, number = one.partition("=")
        if name not in known or not equals or not number.replace(".", "", 1).isdigit():
            more = "" if given.full else "; --full may have more"
            raise ValueError(f"--size {one}: expected NAME=NUMBER with one of {', '.join(sorted(known))}{more}")
        sizes[name] = float(number) if "." in number else int(number)
    return sizes


def plan(given: argparse.Namespace, wanted: list[suite.Scenario]) -> suite.Plan:
    """How it is to be done. Raises ValueError with what is wrong and what to do."""
    if given.full and given.trial:
        raise ValueError("--full and --trial exclude each other")
    rounds = given.rounds or (TRIAL_ROUNDS if given.trial else MIN_ROUNDS)
    if not given.trial and (rounds < MIN_ROUNDS or given.rounds == 0):
        raise ValueError(f"--rounds {given.rounds}: a median needs at least {MIN_ROUNDS} rounds; --trial runs one, not for publication")
    doubts = ["a trial: one round, tiny sizes"] if given.trial else []
    overridden = by_hand(given, wanted)
    doubts += [f"{name} set to {number} by hand" for name, number in overridden.items()]
    if given.peers:
        doubts.append(f"only with the peers {given.peers}")
    if given.trial:
        for scenario in SCENARIOS.values():
            for name, value in scenario.short.items():
                if name not in {"peers", "all_durations", "jobs_each", "pause_ms", "load_per_second", "one", "few", "some", "more", "many"}:
                    overridden.setdefault(f"{scenario.name}.{name}", max(TRIAL_LEAST, value * TRIAL_SHARE) if value >= 1 else value)
    return suite.Plan(
        rounds, "full" if given.full else "trial" if given.trial else "short", overridden, doubts, named=given.peers is not None
    )


def contenders(wanted: str | None) -> dict[str, Peer]:
    """Who takes part. Raises ValueError for a name that nobody has."""
    found = peers()
    if wanted is None:
        return found
    names = [] if wanted == "none" else [name.strip() for name in wanted.split(",")]
    real = [name for name, peer in found.items() if peer.kind == "peer"]
    if unknown := [name for name in names if name not in real]:
        raise ValueError(f"--peers {','.join(unknown)}: there is no such peer; there are {', '.join(real)}")
    return {name: peer for name, peer in found.items() if peer.kind != "peer" or name in names}


def chosen(names: list[str]) -> list[suite.Scenario]:
    """The scenarios of these names, all without a name. Raises ValueError for an unknown one."""
    if probes := [name for name in names if name in PROBES]:
        raise ValueError(f"{', '.join(probes)}: probes of the worker's inside run by themselves, not beside scenarios")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise ValueError(f"unknown scenario {', '.join(unknown)}; there are {', '.join([*SCENARIOS, *PROBES])}")
    return [SCENARIOS[name] for name in names] if names else list(SCENARIOS.values())


def listing() -> str:
    """What there is."""
    lines = [f"{scenario.name:<20} {scenario.title}; short {scenario.short}; full {scenario.full}" for scenario in SCENARIOS.values()]
    lines += [f"{peer.name:<20} {peer.title} ({peer.server}) {' '.join(peer.requirements)}" for peer in peers().values()]
    lines += [f"{name:<20} probe: {purpose(name)}" for name in PROBES]
    return "\n".join(lines)


def probe(given: argparse.Namespace, rest: list[str]) -> int:
    """Run the scripts of probes with what they know of these options; those that only one of them has go there as they are."""
    more = ["--rounds", str(given.rounds)] if given.rounds else []
    for one in given.size:
        name, _, number = one.partition("=")
        more += [f"--{name.replace('_', '-')}", number]
    more += ["--peers", given.peers] if given.peers else []
    more += ["--trial"] if given.trial else []
    scripts = [[sys.executable, str(script_of(name)), *more, *rest] for name in given.scenarios]
    return max(subprocess.run(script, check=False).returncode for script in scripts)


def script_of(name: str) -> Path:
    """The program of a probe."""
    return ROOT / "bench" / f"{name.replace('-', '_')}.py"


def purpose(name: str) -> str:
    """The first sentence of a probe's program."""
    return (ast.get_docstring(ast.parse(script_of(name).read_text())) or "").partition("\n")[0]


def main(arguments: list[str]) -> int:
    """Run; 0 when everything that is here was measured, 1 when something broke, 2 for bad input."""
    given, rest = parser().parse_known_args(arguments)
    if given.list:
        print(listing())
        return 0
    if given.scenarios and set(given.scenarios) <= set(PROBES):
        return probe(given, rest)
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        scenarios = chosen(given.scenarios)
        how, who = plan(given, scenarios), contenders(given.peers)
    except (ValueError, BadHeader) as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    if given.publish and how.doubts:
        print(f"error: --publish: not for publication: {'; '.join(how.doubts)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: servers and workers go with us
    busy = accounts.others_share(LOOK, [])
    if busy > machine.QUIET_SHARE:
        said = f"other processes use {busy:.0%} of this machine; figures for publication need at most {machine.QUIET_SHARE:.0%}"
        if given.publish:
            print(f"error: --publish: {said}\n  try:   again when the machine is quiet", file=sys.stderr)
            return 2
        print(f"bench: {said}; ratios within a table still say something", file=sys.stderr, flush=True)
    return measure(scenarios, who, how, given.results, publish=given.publish)


def measure(scenarios: list[suite.Scenario], who: dict[str, Peer], how: suite.Plan, results: Path, *, publish: bool) -> int:
    """Run the scenarios and write what they give."""
    began, broken = time.monotonic(), 0
    try:
        with servers.running() as running:
            if running.redis_pid is None:
                print(f"bench: {servers.REDIS_MISSING}; the peers on Redis are reported as absent", file=sys.stderr, flush=True)
            for scenario in scenarios:
                document = suite.run(scenario, who, running, how)
                file = suite.write(document, results)
                broken += sum("failed" in entry for entry in document["entries"].values())
                print(suite.summary(document, scenario.figure), flush=True)
                if publish and document["publishable"]:
                    PUBLISHED.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, PUBLISHED)
                elif document["doubts"]:
                    print(f"  not for publication: {'; '.join(document['doubts'])}", flush=True)
    except EmbeddedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"bench: interrupted; servers and workers are gone, what was finished is in {results}", file=sys.stderr)
        return 130
    page = results / "benchmarks.md"
    page.write_text(benchmarks.page(suite.read(results)))
    if publish:
        benchmarks.write()
    print(
        f"{len(scenarios)} scenarios in {(time.monotonic() - began) / 60:.1f} minutes, {broken} entries failed; {page}",
        flush=True,
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
