"""What a request costs while more and more sessions lie in the store, with the tape `window`, on SQLite."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from statistics import median

from shadowcat_stores import Session
from shadowcat_stores.sqlite import SQLiteStore

from . import report
from .bench import CASES, Bench, Sample, tell
from .processes import Children, Cores
from .stacks import SQLITE, Stack, shadowcat

_BATCH = 1000
_TTL = 86_400.0


@dataclass(frozen=True)
class Plan:
    sizes: tuple[int, ...]
    rounds: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """By the number of sessions."""

    samples: dict[int, list[Sample]]

    @property
    def failed(self) -> bool:
        return any(sample.errors for runs in self.samples.values() for sample in runs)


def run(plan: Plan, cores: Cores) -> Found:
    samples: dict[int, list[Sample]] = defaultdict(list)
    with Children() as children:
        bench = Bench(children, cores)
        stacks = {size: _stack(size) for size in plan.sizes}
        for size, stack in stacks.items():
            directory = children.directory / "filled" / str(size)
            directory.mkdir(parents=True)
            asyncio.run(_fill(f"{SQLITE.format(directory=directory)}?max_sessions=1000000", size))
            bench.start(stack)
            bench.measure(stack, CASES[0], 0.3, 0)
        for number, (size, stack) in product(range(plan.rounds), stacks.items()):
            sample = bench.measure(stack, CASES[0], plan.seconds, 0.3)
            samples[size].append(sample)
            tell(f"round {number + 1}/{plan.rounds} {size:7} sessions {sample.rate:9,.0f}/s")
    return Found(samples)


def page(plan: Plan, found: Found, cores: Cores) -> str:
    first = found.samples[plan.sizes[0]]
    rows = []
    for size, runs in found.samples.items():
        ratio = median((mine.cpu or 0) / (other.cpu or 1) for mine, other in zip(runs, first, strict=True))
        rate, cpu = median(each.rate for each in runs), median(each.cpu or 0 for each in runs)
        rss = median(each.rss for each in runs) / 1e6
        rows.append((f"{size:,}", f"{rate:,.0f}", f"{cpu:.1f}", f"{ratio:.2f}", f"{rss:.0f}"))
    headings = ("sessions", "requests/s", "CPU µs/request", f"÷ beside {plan.sizes[0]}", "RSS MB")
    parts = [
        f"# {report.today()}: a call beside many sessions",
        report.machine(cores),
        "A call in JSON at 16 connections; tape `window`, SQLite. The other sessions lie in the store.",
        report.markdown(headings, rows, text=0),
        f"{plan.rounds} rounds of {plan.seconds:g} s each, interleaved. The ratio is taken within a round.",
    ]
    return "\n\n".join(parts) + "\n"


def _stack(size: int) -> Stack:
    """With room for more sessions than a store takes by default."""
    url = SQLITE.replace("{directory}", f"{{directory}}/../filled/{size}") + "?max_sessions=1000000"
    return shadowcat("window", url, f"among-{size}")


async def _fill(url: str, size: int) -> None:
    async with SQLiteStore.from_url(url) as store:
        now = store.clock()
        for begin in range(0, size, _BATCH):
            numbers = range(begin, min(begin + _BATCH, size))
            await asyncio.gather(
                *(
                    store.create_session(
                        Session(
                            id=f"idle-{number}", created_at=now, expires_at=now + _TTL, upstream="default"
                        )
                    )
                    for number in numbers
                )
            )
