"""Measure the session stores: each operation, a recorded frame, growth, memory, and the whole proxy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from . import bench, stacks, storeproxy, valkey
from .bench import tell
from .processes import Children, Cores, free_port, module

MOST = 10_000_000
"""Sessions that a store may hold: no limit of its own shall show."""
CASES = ("json-16", "sse-16")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seconds: float
    """Of each operation, of each store."""
    rounds: int
    load: float
    """Seconds of load on each proxy in each case and round."""
    stores: tuple[str, ...]
    parts: tuple[str, ...]
    """Of `PARTS`."""


STORES = ("memory", "sqlite", "redis")
PARTS = ("operations", "recorder", "growth", "memory", "proxy")


@dataclass
class Found:
    """What each part printed, by part and store; and the proxies."""

    by_part: dict[str, dict[str, Any]] = field(default_factory=dict)
    proxies: storeproxy.Proxies | None = None


class Backends:
    """Where the stores keep what is measured."""

    def __init__(self, children: Children, cores: Cores) -> None:
        self.children = children
        self.port = 0
        self.server: int | None = None
        program = valkey.find()
        if program:
            self.port = free_port()
            directory = children.directory / "valkey"
            directory.mkdir()
            command = valkey.command(program, self.port, directory)
            self.server = children.start_server("valkey", command, cores.load, self.port).pid

    @property
    def redis(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else ""

    def url(self, store: str, part: str) -> str:
        """An empty place of the part's own."""
        if store == "sqlite":
            return f"sqlite:///{self.children.directory}/{part}.db?max_sessions={MOST}"
        if store == "redis":
            return f"{self.redis}?prefix={part}:&max_sessions={MOST}"
        return f"memory://?max_sessions={MOST}"


def run(plan: Plan, cores: Cores) -> Found:
    """Each part with each store in a process of its own, on the core that the proxy has otherwise."""
    found = Found()
    with Children() as children:
        backends = Backends(children, cores)
        for part, store in _work(plan, backends):
            tell(f"{part} {store}")
            command = module("storeload", part, "--url", backends.url(store, part), "--seconds", plan.seconds)
            if store == "redis":
                command += ["--server", str(backends.server)]
            printed = json.loads(children.run(command, cores.proxy, 300))
            found.by_part.setdefault(part, {})[store] = printed
        if "proxy" in plan.parts:
            chosen = [
                stack
                for stack in stacks.with_stores(backends.redis)
                if stack.name.rpartition("-")[2] in (*plan.stores, "memory")
            ]
            cases = [case for case in bench.CASES if case.name in CASES]
            proxies = bench.Bench(children, cores)
            if backends.server:
                proxies.beside.append(backends.server)
            found.proxies = storeproxy.run(bench.Plan(chosen, cases, plan.rounds, plan.load), proxies)
    return found


def _work(plan: Plan, backends: Backends) -> Iterator[tuple[str, str]]:
    for part, store in product(plan.parts, plan.stores):
        if part == "proxy" or (part == "memory" and store != "memory"):
            continue
        if store == "redis" and not backends.redis:
            tell(f"{part} {store}: {valkey.ADVICE}")
            continue
        yield part, store
