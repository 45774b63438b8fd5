"""`make conformance`: whatever passes directly must come out the same through the proxy, check by check.

    python -m tests.conformance [--only PATTERN]... [--list]

Plays the official conformance suite's client against real servers, its servers to a real client, the Python
SDK's examples, and clients of every era against servers of every era: directly, then with Shadowcat between.
Prints a table and all differences. `differences.toml` has those that are on record; any other fails the
command, and so does a record of one that is no more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import anyio

from tests.conformance.clients import SERVERS, client_checks
from tests.conformance.compare import Check, Difference, Known, differences, read_known, settle
from tests.conformance.routes import node_server, python_server, through
from tests.conformance.stories import play, stories
from tests.conformance.suite import REVISIONS, Suite
from tests.real._process import ServerProcess

ALL = None
"""For a revision: every scenario, extensions included, each at the revision that the suite chooses."""


@dataclass(frozen=True)
class Leg:
    """What is played on both routes and compared."""

    name: str
    play: Callable[[bool], Awaitable[list[Check]]]
    """Play it, through the proxy or not."""
    again: Callable[[Sequence[str], bool], Awaitable[list[Check]]] | None = None
    """Play some of its scenarios once more."""


def legs() -> Iterator[Leg]:
    """Yield all there are."""
    stable, newest = Suite("stable"), Suite("next")
    plans = [(stable, ALL), *((newest, revision) for revision in (*REVISIONS, ALL))]
    for suite, revision in plans:
        name = f"{suite.version} / {revision or 'all'}"
        yield Leg(f"server Python / {name}", partial(_server, suite, revision, _everything))
    for suite, revision in ((stable, ALL), (newest, "2025-06-18"), (newest, "2025-11-25")):
        name = f"{suite.version} / {revision or 'all'}"
        yield Leg(f"server Node / {name}", partial(_server, suite, revision, node_server))
    for suite, revision in plans:
        name = f"{suite.version} / {revision or 'all'}"
        yield Leg(
            f"client Python / {name}", partial(_client, suite, revision), partial(_again, suite, revision)
        )
    yield Leg("stories", partial(_stories, None), _stories)
    for server in SERVERS:
        yield Leg(f"clients / {server}", partial(_clients, server))


def _everything() -> ServerProcess:
    return python_server("everything")


async def _server(
    suite: Suite, revision: str | None, start: Callable[[], ServerProcess], proxied: bool
) -> list[Check]:
    with start() as server:
        if not proxied:
            return await suite.server_checks(server.url, revision)
        async with through(server.url) as url:
            return await suite.server_checks(url, revision)


async def _client(suite: Suite, revision: str | None, proxied: bool) -> list[Check]:
    scenarios = await suite.client_scenarios(revision)
    if revision is ALL and suite.name == "next":  # the others were played, at each revision that has them
        for each in REVISIONS:
            others = await suite.client_scenarios(each)
            scenarios = [scenario for scenario in scenarios if scenario not in others]
    return await _again(suite, revision, scenarios, proxied)


async def _again(suite: Suite, revision: str | None, scenarios: Sequence[str], proxied: bool) -> list[Check]:
    return await suite.client_checks(scenarios, revision, proxied=proxied)


async def _stories(names: Sequence[str] | None, proxied: bool) -> list[Check]:
    chosen = [story for story in stories() if names is None or story.scenario in names]
    return await play(chosen, proxied=proxied)


async def _clients(server: str, proxied: bool) -> list[Check]:
    return await client_checks(server, proxied=proxied)


async def compared(leg: Leg, known: Sequence[Known]) -> tuple[list[str], list[Difference]]:
    """Play the leg on both routes; return its row of the table, and the differences.

    Client scenarios and stories wait in real time, which a busy machine makes too short: those that differ,
    not on record, are played once more, alone, and count if they still do.
    """
    begun = time.monotonic()
    direct, proxied = await leg.play(False), await leg.play(True)
    found = differences(leg.name, direct, proxied)
    if leg.again is not None:
        new = {each.scenario for each in found if not any(entry.covers(each) for entry in known)}
        for scenario in sorted(new):
            once_more = differences(
                leg.name, await leg.again([scenario], False), await leg.again([scenario], True)
            )
            if not once_more:
                print(f"differed once, and not again: {leg.name} | {scenario}", flush=True)
                found = [each for each in found if each.scenario != scenario]
    passed = [str(sum(check.passed for check in checks)) for checks in (direct, proxied)]
    seconds = f"{time.monotonic() - begun:.0f}"
    return [leg.name, str(len(direct)), *passed, str(len(found)), seconds], found


async def main(patterns: Sequence[str]) -> int:
    """Play what is asked for; return the exit code."""
    rows = []
    found: list[Difference] = []
    known = read_known()
    chosen = [leg for leg in legs() if any(fnmatchcase(leg.name, each) for each in patterns or ("*",))]
    for leg in chosen:
        row, differing = await compared(leg, known)
        print(" | ".join(row), flush=True)
        rows.append(row)
        found += differing
    wrong = settle(found, known, [leg.name for leg in chosen])
    print("\n| what | checks | passed directly | through the proxy | differences | s |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    for entry in known:
        count = sum(entry.covers(each) for each in found)
        if count:
            print(f"\non record, {count}: {entry.legs} | {entry.scenario} | {entry.check}: {entry.reason}")
    print("".join(f"\n{each}" for each in wrong) or "\nno difference but those on record")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="legs, as a shell pattern"
    )
    parser.add_argument("--list", action="store_true", help="name the legs and play none")
    options = parser.parse_args()
    if options.list:
        print("\n".join(leg.name for leg in legs()))
    else:
        sys.exit(anyio.run(main, options.only))
