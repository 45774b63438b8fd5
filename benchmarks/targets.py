"""What is promised of requests through the proxy, and whether a run kept it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from .bench import Sample, Samples

Row = tuple[str, str, str, str]

WINDOW = "shadowcat-window-sqlite"
OFF = "shadowcat-off"
LABELS = {WINDOW: "tape window, SQLite", OFF: "tape off, memory"}


@dataclass(frozen=True)
class Target:
    """Shadowcat over another stack, with so many connections; compared within a round."""

    what: str
    mine: str
    other: str
    limit: float
    measure: Callable[[Sample, Sample, Sample], float]
    """Of Shadowcat's sample, the other's and the direct one."""
    at_most: bool = False
    connections: int = 16

    def check(self, case: str, samples: Samples) -> Iterator[Row]:
        """Nothing where it was not measured."""
        runs = (samples.get((case, name), []) for name in (self.mine, self.other, "direct"))
        rounds = [each for each in zip(*runs, strict=False) if all(sample.rate for sample in each)]
        if rounds:
            value = median(self.measure(*each) for each in rounds)
            kept = value <= self.limit if self.at_most else value >= self.limit
            what = f"{case}, {LABELS[self.mine]}: {self.what}"
            sign = "≤" if self.at_most else "≥"
            yield what, f"{sign} {self.limit:g} ×", f"{value:.2f} ×", "kept" if kept else "**missed**"


def _cpu(mine: Sample, other: Sample, _: Sample) -> float:
    return (mine.cpu or 0) / (other.cpu or 1)


def _rate(mine: Sample, other: Sample, _: Sample) -> float:
    return mine.rate / other.rate


def _added(mine: Sample, other: Sample, direct: Sample) -> float:
    return (mine.p50 - direct.p50) / max(1, other.p50 - direct.p50)


TARGETS = [
    Target("CPU per request over nginx's", WINDOW, "nginx", 5, _cpu, at_most=True),
    Target("CPU per request over nginx's", OFF, "nginx", 4, _cpu, at_most=True),
    Target("requests/s over nginx's", WINDOW, "nginx", 0.25, _rate),
    Target("requests/s over nginx's", OFF, "nginx", 0.33, _rate),
    Target("requests/s over naive httpx", WINDOW, "naive-httpx", 20, _rate),
    Target("requests/s over naive httpx2", WINDOW, "naive-httpx2", 10, _rate),
    Target("added p50 over nginx's", WINDOW, "nginx", 3, _added, at_most=True, connections=1),
]


def check(samples: Samples) -> Iterator[Row]:
    for kind in ("json", "sse"):
        for target in TARGETS:
            yield from target.check(f"{kind}-{target.connections}", samples)
