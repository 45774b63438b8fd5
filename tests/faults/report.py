"""Many runs, and the table of what came of them."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from tests.faults.checker import Verdict, judge
from tests.faults.run import Run, run
from tests.faults.schedule import HELD, Promise, schedule


@dataclass
class Totals:
    """The sums of many runs."""

    runs: int = 0
    failed: list[int] = field(default_factory=list)
    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    stores: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, done: Run, verdict: Verdict) -> None:
        """Count one run."""
        self.runs += 1
        self.stores[f"{done.schedule.store}, {done.schedule.upstream}"] += 1
        self.messages += verdict.messages
        self.lost += verdict.lost
        self.duplicated += verdict.duplicated
        self.outcomes += verdict.outcomes
        self.struck.update(fault.kind for fault in done.ledger.struck)
        for kind, seconds in done.ledger.recoveries:
            self.recoveries[kind].append(seconds)
        if verdict.problems:
            self.failed.append(done.schedule.seed)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.stores.items()))
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        lines = [
            f"{self.runs} schedules ({kinds}): {len(self.failed)} failed",
            f"{self.messages} messages received, {self.lost} lost, {self.duplicated} duplicated",
            f"calls and GET streams: {outcomes}",
            "",
            f"{'fault':<18}{'struck':>8}{'recovered':>11}{'p50 ms':>9}{'p95 ms':>9}",
        ]
        for kind, count in sorted(self.struck.items()):
            times = sorted(1000 * each for each in self.recoveries.get(kind, ()))
            shown = f"{statistics.median(times):>9.0f}{_percentile(times, 95):>9.0f}" if times else ""
            lines.append(f"{kind:<18}{count:>8}{len(times):>11}{shown}")
        return "\n".join(lines)


def _percentile(times: Sequence[float], percent: int) -> float:
    return times[min(len(times) - 1, len(times) * percent // 100)]


def replay(seed: int, whole: bool = False) -> str:
    """Return the command that runs a seed again."""
    return f"python -m tests.faults --seed {seed}{' --whole' * whole}"


def explain(done: Run, verdict: Verdict, whole: bool = False) -> str:
    """Return all there is to know about a run."""
    found = [f"FAILED: {each}" for each in verdict.problems] or ["Nothing is wrong with it."]
    logs = [f"What a proxy printed:\n{each}" for each in done.logs]
    again = f"Again: {replay(done.schedule.seed, whole)}"
    return "\n".join([str(done.schedule), *done.ledger.story, *logs, *found, again])


async def run_seed(seed: int, promise: Promise = HELD) -> tuple[Run, Verdict]:
    """Run the schedule of a seed."""
    done = await run(schedule(seed, promise), promise)
    return done, judge(done, promise)


async def run_all(seeds: Sequence[int], promise: Promise, jobs: int) -> tuple[Totals, list[str]]:
    """Run them, a few at a time; return the sums and the explanations of those that failed."""
    totals, explanations = Totals(), []
    limit = anyio.CapacityLimiter(jobs)

    async def one(seed: int) -> None:
        async with limit:
            done, verdict = await run_seed(seed, promise)
        totals.add(done, verdict)
        if verdict.problems:
            explanations.append(explain(done, verdict, promise is not HELD))

    async with anyio.create_task_group() as tasks:
        for seed in seeds:
            tasks.start_soon(one, seed)
    return totals, explanations
