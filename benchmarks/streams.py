"""Measure streams: latency and CPU of events, a flood, thousands of idle streams, and the proxy's start."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import ParamSpec, TypeVar

from . import crowd, startup, valkey
from .bench import Bench, tell
from .processes import Children, Cores, free_port, module, raise_file_limit
from .stacks import SQLITE, Stack, for_streams
from .wire import fetch

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Case:
    """One table of events."""

    name: str
    title: str
    kind: str
    streams: int = 1


CASES = (
    Case("paced-16", "Paced events, 16 streams of 50 per second", "paced", 16),
    Case("paced-1", "Paced events, one stream of 50 per second", "paced"),
    Case("flood", "Flood: one stream of 100-byte events", "flood"),
    Case("first", "First event of a stream, one after the other", "first"),
)
PARTS = (*(case.name for case in CASES), "idle", "calls", "start")
STORES = ("memory", "sqlite", "redis")
STARTS = 10


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of load per stack, case and round."""
    only: tuple[str, ...]
    """Beginnings of stacks' names; all where there are none."""
    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    """Numbers of idle streams."""
    store: str

    @property
    def cases(self) -> list[Case]:
        return [case for case in CASES if case.name in self.parts]


@dataclass(frozen=True)
class Sample:
    """One stack in one case, once; times in µs."""

    events: float = 0
    """How many latencies there are; of a flood, events per second."""
    p50: float = 0
    p95: float = 0
    cpu: float | None = None
    """Of the proxy, per event."""
    others: float = 0
    """How much of a core other programs used meanwhile."""
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Found:
    """What came out, by case and stack, or by stack."""

    stacks: list[Stack]
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    frames: dict[str, dict[str, int]] = field(default_factory=dict)
    """What the floods left on the tape, or dropped from it."""
    attached: dict[str, crowd.Held] = field(default_factory=dict)
    adopted: dict[str, crowd.Held] = field(default_factory=dict)
    calls: dict[str, list[crowd.Pair]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """What came to no end, and why."""

    @property
    def failed(self) -> bool:
        """Whether an event was lost, or a part came to no end."""
        wrong = any(each.errors for samples in self.samples.values() for each in samples)
        return wrong or bool(self.broken)

    def attempt(self, what: str, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | None:
        """Do it; where it breaks, note that and go on."""
        try:
            return work(*given, **named)
        except (RuntimeError, OSError, subprocess.SubprocessError, TimeoutError) as error:
            tell(f"{what}: {error}")
            self.broken.append(f"{what}: {str(error).splitlines()[0] if str(error) else repr(error)}")
            return None


def run(plan: Plan, cores: Cores) -> Found:
    """Measure the plan, part by part."""
    most = raise_file_limit()
    with Children() as children:
        bench = Bench(children, cores)
        stacks = [each for each in for_streams(_store(plan, bench)) if _is_chosen(each, plan.only)]
        found = Found([each for each in stacks if not each.missing])
        found.broken += [f"{each.label}: {each.missing}" for each in stacks if each.missing]
        if plan.cases:
            _events(plan, bench, found)
        sizes = tuple(size for size in plan.sizes if 2 * size + 500 < most)
        if len(sizes) < len(plan.sizes):
            found.broken.append(f"idle streams: only {most:,} open files are allowed (ulimit -Hn)")
        if "idle" in plan.parts and sizes:
            _idle(bench, found, sizes)
        if "calls" in plan.parts:
            for stack in _many(found):
                what, seconds = f"calls beside streams, {stack.name}", plan.seconds / 2
                found.calls[stack.name] = (
                    found.attempt(what, crowd.calls, bench, stack, plan.rounds, seconds) or []
                )
        if "start" in plan.parts:
            _starts(bench, found)
        return found


def _is_chosen(stack: Stack, only: tuple[str, ...]) -> bool:
    return not only or stack.name.startswith(only)


def _many(found: Found) -> list[Stack]:
    """Those that hold a thousand streams: an httpx client has 100 connections."""
    return [each for each in found.stacks if each.command and not each.name.startswith("naive")]


def _store(plan: Plan, bench: Bench) -> str:
    """The URL of the store that Shadowcat has."""
    if plan.store == "redis":
        if valkey.find() is None:
            raise SystemExit(valkey.ADVICE)
        port = free_port()
        bench.start_redis(port)
        return f"redis://127.0.0.1:{port}?prefix={{directory.name}}:"
    return SQLITE if plan.store == "sqlite" else "memory://"


def _events(plan: Plan, bench: Bench, found: Found) -> None:
    for stack in found.stacks:
        bench.start(stack)
        measure(bench, stack, CASES[-1], 0.3)
    for number, case in product(range(plan.rounds), plan.cases):
        # From both ends in turn: nobody always comes after the same one.
        for stack in found.stacks[:: -1 if number % 2 else 1]:
            sample = measure(bench, stack, case, plan.seconds)
            found.samples[case.name, stack.name].append(sample)
            tell(f"round {number + 1}/{plan.rounds} {case.name:8} {stack.name:18} {_line(sample)}")
    for stack in found.stacks:
        if stack.metrics:
            found.frames[stack.name] = (
                found.attempt(f"metrics, {stack.name}", _frames, bench.ports[stack.name]) or {}
            )
        if stack.command:
            bench.stop(stack)


def _line(sample: Sample) -> str:
    latency = f"p50 {sample.p50:7,.0f} µs" if sample.p50 else " " * 14
    return f"{sample.events:11,.0f} {latency} {sample.cpu or 0:8.2f} µs CPU {sample.errors or ''}"


def measure(bench: Bench, stack: Stack, case: Case, seconds: float) -> Sample:
    """Put the case on the stack; a load that breaks is an error of the sample's."""
    pid = bench.pids.get(stack.name)
    url = f"http://127.0.0.1:{bench.ports[stack.name]}/mcp"
    options = ["--url", url, "--streams", case.streams, "--seconds", seconds, "--pid", pid or 0]
    try:
        said, _, others = bench.play(stack, module("streamload", case.kind, *options), 90 + 20 * seconds)
    except (RuntimeError, subprocess.SubprocessError) as error:
        return Sample(errors={str(error).splitlines()[-1][:200]: 1})
    return Sample(
        events=said.get("rate", said.get("events", 0)),
        p50=said.get("latency_us", {}).get("p50", 0),
        p95=said.get("latency_us", {}).get("p95", 0),
        cpu=said.get("cpu") if pid else None,
        others=others,
        errors=said["errors"],
    )


def _frames(port: int) -> dict[str, int]:
    metrics = asyncio.run(fetch(port, "/metrics")).decode()
    return {
        name: int(value) for name, value in re.findall(r"^shadowcat_(frames_\w+)_total (\d+)$", metrics, re.M)
    }


def _idle(bench: Bench, found: Found, sizes: tuple[int, ...]) -> None:
    for stack in _many(found):
        what = f"attached streams, {stack.name}"
        held = found.attached[stack.name] = {}
        found.attempt(what, crowd.memory, bench, stack, sizes, False, held)
    for stack in _many(found):
        if stack.metrics and "off" not in stack.name:
            what = f"adopted streams, {stack.name}"
            held = found.adopted[stack.name] = {}
            found.attempt(what, crowd.memory, bench, stack, sizes, True, held)


def _starts(bench: Bench, found: Found) -> None:
    found.starts["python"] = startup.bare_python(bench, STARTS)
    for stack in found.stacks:
        if stack.metrics:
            what = f"start, {stack.name}"
            found.starts[stack.name] = (
                found.attempt(what, startup.seconds_to_ready, bench, stack, STARTS) or []
            )
