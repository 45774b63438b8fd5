"""`python -m benchmarks` measures the proxies, `python -m benchmarks stores` the session stores,
`python -m benchmarks streams` streams, `python -m benchmarks growth` a call beside many sessions,
`python -m benchmarks recovery` what happens after faults,
`python -m benchmarks peers` other proxies for MCP, and `python -m benchmarks audit` checks Shadowcat's
promises."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TypeVar

from . import (
    audit,
    bench,
    environments,
    growth,
    peers,
    peerspage,
    recovery,
    recoverypage,
    report,
    storepage,
    stores,
    streams,
    streamspage,
)
from .processes import ROOT, Cores
from .stacks import Stack, all_stacks

T = TypeVar("T", Stack, bench.Case, peers.Peer)


def chosen(names: str, among: list[T]) -> list[T]:
    """Those that are named, or whose names begin so, in their own order; all where no name is given."""
    known = [each.name for each in among]
    wanted: set[str] = set()
    for name in (name.strip() for name in names.split(",")):
        found = [name] if name in known else [each for each in known if each.startswith(name)]
        if not found:
            sys.exit(f"{name!r} is none of {', '.join(known)}")
        wanted.update(found)
    return [each for each in among if each.name in wanted]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of load per stack, case and round")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="stacks, by the beginning of their names: nginx,shadowcat"
    )
    parser.add_argument("--cases", default="", metavar="NAMES", help="json-16,sse-16,json-1,sse-1")
    parser.add_argument("--output", metavar="FILE", help="default: benchmarks/results/<date>.md; - for none")
    parser.set_defaults(run=measure)
    commands = parser.add_subparsers(metavar="audit|growth|peers|recovery|stores|streams")
    measures = commands.add_parser("stores", help=stores.__doc__, description=stores.__doc__)
    measures.add_argument("--seconds", type=float, default=0.3, help="of each operation, of each store")
    measures.add_argument("--rounds", type=int, default=5, help="of load on the proxies")
    measures.add_argument("--load", type=float, default=1.5, help="seconds of it for each proxy and case")
    measures.add_argument("--only", default="", metavar="STORES", help="memory,sqlite,redis")
    measures.add_argument("--parts", default="", metavar="PARTS", help=",".join(stores.PARTS))
    measures.add_argument(
        "--output", metavar="FILE", help="default: benchmarks/results/<date>-stores.md; - for none"
    )
    measures.set_defaults(run=measure_stores)
    _streams(commands.add_parser("streams", help=streams.__doc__, description=streams.__doc__))
    _growth(commands.add_parser("growth", help=growth.__doc__, description=growth.__doc__))
    _recovery(commands.add_parser("recovery", help=recovery.__doc__, description=recovery.__doc__))
    _peers(commands.add_parser("peers", help=peers.__doc__, description=peers.__doc__))
    audits = commands.add_parser("audit", help=audit.__doc__, description=audit.__doc__)
    audits.add_argument("--proxy", default="shadowcat-window", help="a stack's name")
    audits.add_argument("--calls", type=int, default=10_000, help="calls in JSON, and as many in SSE")
    audits.add_argument("--settle", type=float, default=15.0, help="seconds that streams may take to close")
    audits.add_argument(
        "--output", metavar="FILE", help="default: benchmarks/results/<date>-audit.md; - for none"
    )
    audits.set_defaults(run=check)
    return parser


def _streams(measures: argparse.ArgumentParser) -> None:
    measures.add_argument("--rounds", type=int, default=3)
    measures.add_argument("--seconds", type=float, default=2.0, help="of load per stack, case and round")
    measures.add_argument(
        "--only", default="", metavar="NAMES", help="stacks, by the beginning of their names"
    )
    measures.add_argument("--parts", default="", metavar="PARTS", help=",".join(streams.PARTS))
    measures.add_argument("--sizes", default="1000,5000", metavar="NUMBERS", help="of idle streams")
    measures.add_argument("--store", default="sqlite", choices=streams.STORES, help="Shadowcat's")
    measures.add_argument(
        "--output", metavar="FILE", help="default: benchmarks/results/<date>-streams.md; - for none"
    )
    measures.set_defaults(run=measure_streams)


def _growth(measures: argparse.ArgumentParser) -> None:
    measures.add_argument("--rounds", type=int, default=5)
    measures.add_argument("--seconds", type=float, default=2.0, help="of load per size and round")
    measures.add_argument("--sizes", default="10,1000,100000", metavar="NUMBERS", help="of sessions")
    measures.add_argument(
        "--output", metavar="FILE", help="default: benchmarks/results/<date>-growth.md; - for none"
    )
    measures.set_defaults(run=measure_growth)


def _recovery(measures: argparse.ArgumentParser) -> None:
    names = ",".join(fault.name for fault in recovery.FAULTS)
    measures.add_argument("--count", type=int, default=30, help="of each fault, at each store")
    measures.add_argument("--faults", default="", metavar="FAULTS", help=names)
    measures.add_argument("--stores", default="", metavar="STORES", help=",".join(recovery.STORES))
    measures.add_argument(
        "--output", metavar="FILE", help="default: benchmarks/results/<date>-recovery.md; - for none"
    )
    measures.set_defaults(run=measure_recovery)


def _peers(measures: argparse.ArgumentParser) -> None:
    measures.add_argument("--rounds", type=int, default=3)
    measures.add_argument("--seconds", type=float, default=2.0, help="of load per peer, server and round")
    measures.add_argument(
        "--only", default="", metavar="NAMES", help="peers, by the beginning of their names"
    )
    measures.add_argument(
        "--output", metavar="FILE", help="default: benchmarks/results/<date>-peers.md; - for none"
    )
    measures.set_defaults(run=measure_peers)


def measure(given: argparse.Namespace) -> int:
    stacks = [stack.prepared() for stack in chosen(given.only, all_stacks())]
    plan = bench.Plan(
        stacks=[stack for stack in stacks if not stack.missing],
        cases=chosen(given.cases, bench.CASES),
        rounds=given.rounds,
        seconds=given.seconds,
    )
    cores = Cores.choose()
    bench.tell(f"about {plan.duration():.0f} s; {cores}")
    samples = bench.run(plan, cores)
    page = report.page(plan, samples, cores, [stack for stack in stacks if stack.missing])
    publish(page, given.output, f"{report.today()}.md")
    return int(any(sample.errors for runs in samples.values() for sample in runs))


def measure_stores(given: argparse.Namespace) -> int:
    plan = stores.Plan(
        seconds=given.seconds,
        rounds=given.rounds,
        load=given.load,
        stores=named(given.only, stores.STORES),
        parts=named(given.parts, stores.PARTS),
    )
    cores = Cores.choose()
    found = stores.run(plan, cores)
    publish(storepage.page(plan, found, cores), given.output, f"{report.today()}-stores.md")
    return int(found.proxies is not None and found.proxies.failed)


def measure_streams(given: argparse.Namespace) -> int:
    plan = streams.Plan(
        rounds=given.rounds,
        seconds=given.seconds,
        only=tuple(name.strip() for name in given.only.split(",") if name.strip()),
        parts=named(given.parts, streams.PARTS),
        sizes=tuple(sorted(int(size) for size in given.sizes.split(",") if size)),
        store=given.store,
    )
    cores = Cores.choose()
    found = streams.run(plan, cores)
    publish(streamspage.page(plan, found, cores), given.output, f"{report.today()}-streams.md")
    return int(found.failed)


def measure_growth(given: argparse.Namespace) -> int:
    sizes = tuple(sorted(int(size) for size in given.sizes.split(",") if size))
    plan = growth.Plan(sizes, given.rounds, given.seconds)
    cores = Cores.choose()
    found = growth.run(plan, cores)
    publish(growth.page(plan, found, cores), given.output, f"{report.today()}-growth.md")
    return int(found.failed)


def measure_recovery(given: argparse.Namespace) -> int:
    faults = named(given.faults, tuple(fault.name for fault in recovery.FAULTS))
    plan = recovery.Plan(
        count=given.count,
        faults=tuple(fault for fault in recovery.FAULTS if fault.name in faults),
        stores=named(given.stores, recovery.STORES),
    )
    found = recovery.run(plan)
    page = recoverypage.page(plan, found, Cores(None, None, None))
    publish(page, given.output, f"{report.today()}-recovery.md")
    return int(recoverypage.failed(found))


def measure_peers(given: argparse.Namespace) -> int:
    plan = peers.Plan(tuple(chosen(given.only, list(peers.PEERS))), given.rounds, given.seconds)
    cores = Cores.choose()
    found = peers.run(plan, cores)
    versions = dict.fromkeys(
        environments.version(peer.environment) for peer in plan.peers if peer.environment
    )
    page = peerspage.page(plan, found, cores, ", ".join(versions) or "no peers")
    publish(page, given.output, f"{report.today()}-peers.md")
    return int(found.failed)


def named(names: str, among: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are named, in their own order; all where no name is given."""
    wanted = {name.strip() for name in names.split(",") if name.strip()} or set(among)
    if unknown := sorted(wanted - set(among)):
        sys.exit(f"{unknown[0]!r} is none of {', '.join(among)}")
    return tuple(each for each in among if each in wanted)


def check(given: argparse.Namespace) -> int:
    stack = chosen(given.proxy, all_stacks())[0].prepared()
    if stack.missing:
        sys.exit(f"{stack.label}: {stack.missing}")
    cores = Cores.choose()
    checks = audit.run(stack, cores, given.calls, given.settle)
    publish(audit.page(stack, checks, cores), given.output, f"{report.today()}-audit.md")
    return int(not all(check.passed for check in checks))


def publish(page: str, output: str | None, name: str) -> None:
    print(page)
    if output == "-":
        return
    file = Path(output) if output else ROOT / "benchmarks" / "results" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(page)
    bench.tell(f"written to {file}")


def main() -> int:
    if sys.platform != "linux":
        sys.exit("the benchmarks read /proc: they need Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = arguments().parse_args()
    try:
        return int(given.run(given))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
