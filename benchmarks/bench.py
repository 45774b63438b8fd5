"""The rounds: every stack in turn, again and again, so that a busy moment of the machine hits them all."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Any

from . import valkey
from .processes import Children, Cores, cpu_seconds, free_port, machine_seconds, module, rss_bytes
from .stacks import Stack


@dataclass(frozen=True)
class Case:
    """One table."""

    name: str
    title: str
    tool: str
    connections: int


CASES = [
    Case("json-16", "`tools/call` answered in JSON, 16 connections", "echo", 16),
    Case("sse-16", "`tools/call` answered as a one-event SSE stream, 16 connections", "echo_sse", 16),
    Case("json-1", "`tools/call` answered in JSON, 1 connection", "echo", 1),
    Case("sse-1", "`tools/call` answered as a one-event SSE stream, 1 connection", "echo_sse", 1),
]


@dataclass(frozen=True)
class Sample:
    """One stack in one case, once."""

    rate: float
    p50: float
    p99: float
    cpu: float | None
    """µs of the proxy's CPU per request; `None` where there is no proxy."""
    rss: int
    others: float
    """How much of a core other programs used meanwhile."""
    errors: dict[str, int]


@dataclass(frozen=True)
class Plan:
    stacks: list[Stack]
    cases: list[Case]
    rounds: int
    seconds: float
    warmup: float = 0.3

    def duration(self) -> float:
        """About how long it takes; a load generator needs half a second to start."""
        return self.rounds * len(self.stacks) * len(self.cases) * (self.seconds + self.warmup + 0.5)


Samples = dict[tuple[str, str], list[Sample]]
"""By case and stack."""


class Bench:
    """The stub, the proxies in front of it, and the load that is put on them."""

    def __init__(self, children: Children, cores: Cores) -> None:
        self.children = children
        self.cores = cores
        self.pids: dict[str, int] = {}
        self.beside: list[int] = []
        """Servers that proxies need, so that they do not count as other programs."""
        self.ports: dict[str, int] = {}
        self.stub_port = free_port()
        command = module("upstream", "--port", self.stub_port)
        self.stub = children.start_server("stub", command, cores.stub, self.stub_port)

    def start(self, stack: Stack) -> None:
        port = self.ports[stack.name] = free_port() if stack.command else self.stub_port
        if stack.command:
            directory = self.children.directory / stack.name
            directory.mkdir()
            if stack.redis_port:
                self.start_redis(stack.redis_port)
            command = stack.command(f"http://127.0.0.1:{self.stub_port}/mcp", port, directory)
            self.pids[stack.name] = self.children.start_server(
                stack.name, command, self.cores.proxy, port
            ).pid

    def start_redis(self, port: int) -> None:
        """A server for a stack's sessions, on the core of the load, as one on another machine would be."""
        program = valkey.find()
        assert program, valkey.ADVICE
        directory = self.children.directory / "valkey"
        directory.mkdir()
        command = valkey.command(program, port, directory)
        self.beside.append(self.children.start_server("valkey", command, self.cores.load, port).pid)

    def measure(self, stack: Stack, case: Case, seconds: float, warmup: float) -> Sample:
        pid = self.pids.get(stack.name)
        url = f"http://127.0.0.1:{self.ports[stack.name]}/mcp"
        options = ["--url", url, "--tool", case.tool, "--connections", case.connections]
        command = module("load", *options, "--seconds", seconds, "--warmup", warmup)
        found, used, others = self.play(stack, command, seconds + warmup + 60)
        return Sample(
            rate=found["rate"],
            p50=found["latency_us"].get("p50", 0),
            p99=found["latency_us"].get("p99", 0),
            cpu=1e6 * used / found["sent"] if pid else None,
            rss=rss_bytes(pid) if pid else 0,
            others=others,
            errors=found["errors"],
        )

    def play(self, stack: Stack, command: list[str], limit: float) -> tuple[dict[str, Any], float, float]:
        """Run a load: what it printed, CPU seconds of the proxy, and the part of a core that others used."""
        pid = self.pids.get(stack.name)
        before, began = self.used(pid), perf_counter()
        found = json.loads(self.children.run(command, self.cores.load, limit))
        after, took = self.used(pid), perf_counter() - began
        used, ours, all_of_it = (b - a for a, b in zip(before, after, strict=True))
        return found, used, max(0.0, all_of_it - used - ours) / took

    def stop(self, stack: Stack) -> None:
        """End the proxy, at once and with all that it holds."""
        self.children.stop(self.pids.pop(stack.name))

    def used(self, pid: int | None) -> tuple[float, float, float]:
        """CPU seconds so far: the proxy's; the stub's, ours and the loads'; the whole machine's."""
        times = os.times()
        ours = times.user + times.system + times.children_user + times.children_system
        ours += sum(cpu_seconds(each) for each in (self.stub.pid, *self.beside))
        return cpu_seconds(pid) if pid else 0.0, ours, machine_seconds()


def run(plan: Plan, cores: Cores) -> Samples:
    """Measure the plan. Each stack is warmed up once, unmeasured, before the first round."""
    samples: Samples = defaultdict(list)
    with Children() as children:
        bench = Bench(children, cores)
        for stack in plan.stacks:
            bench.start(stack)
            bench.measure(stack, plan.cases[0], plan.warmup, 0)
        for number, case in product(range(plan.rounds), plan.cases):
            for stack in plan.stacks:
                sample = bench.measure(stack, case, plan.seconds, plan.warmup)
                samples[case.name, stack.name].append(sample)
                tell(f"round {number + 1}/{plan.rounds} {case.name:8} {stack.name:18} {sample.rate:9,.0f}/s")
    return samples


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
