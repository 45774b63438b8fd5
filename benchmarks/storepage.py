"""The page about the stores: the targets first, then the tables."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from . import report, storeproxy, valkey
from .processes import Cores
from .stores import Found, Plan

PACKAGES = ("shadowcat-mcp", "msgspec", "redis", "hiredis", "uvloop")

OPERATIONS = """\
Each store in a process of its own on one core, {seconds:g} s per figure; 1,000 sessions, the tapes of 32 of
them within the proxy's default window (1,000 frames, 4 MiB). Times are µs; `CPU` is µs per call: `loop` of
the event loop's thread, with the caller's own 0.5; `threads` of the process's other threads; `server` of the
store's server, on another core. `32:` with 32 callers at once. A store in memory never waits, so there each
call still runs by itself."""
RECORDER = """\
µs of CPU for a frame that passes through `Recorder` as in the proxy: 16 frames every 2 ms, to 16 sessions,
written every 50 ms; less what the same loop costs with the tape off. Medians of 5 turns."""
GROWTH = "One caller, p50 µs (p95 in brackets). The page of 100 begins in the middle of all sessions."
MEMORY = """\
Growth of the resident memory. Each session was touched once; its record has about 500 bytes of its own."""
PROXY = """\
{rounds} rounds of {seconds:g} s, interleaved, 16 connections; medians, ratios taken within a round. One proxy
process with all its threads on one core, the store's server on the load's. A request makes two frames.
Other programs used {others:.0f} % of a core meanwhile, {worst:.0f} % at worst: from about 5 % on, trust only
the ratios, and those not blindly."""


def page(plan: Plan, found: Found, cores: Cores) -> str:
    parts = [f"# {report.today()}: session stores", report.machine(cores, PACKAGES, valkey.version())]
    checks = list(targets(found))
    if checks:
        parts += ["## Targets", report.markdown(("what", "target", "measured", "verdict"), checks, text=4)]
    sections = (
        ("operations", "Operations", OPERATIONS, _operations),
        ("recorder", "A recorded frame", RECORDER, _recorder),
        ("growth", "Growth", GROWTH, _growth),
        ("memory", "Bytes of an idle session in memory", MEMORY, _memory),
    )
    for name, title, note, table in sections:
        if by_store := found.by_part.get(name):
            parts += [f"## {title}", note.format(seconds=plan.seconds), *table(by_store)]
    if found.proxies:
        runs = [100 * each.others for some in found.proxies.samples.values() for each in some]
        note = PROXY.format(rounds=plan.rounds, seconds=plan.load, others=median(runs), worst=max(runs))
        parts += ["## The whole proxy", note, *storeproxy.tables(found.proxies)]
    return "\n\n".join(parts) + "\n"


def targets(found: Found) -> Iterator[tuple[str, str, str, str]]:
    """What is promised of the stores, and whether it was kept."""
    redis = found.by_part.get("operations", {}).get("redis")
    if redis:
        for name, limit in (("get_session", 2000), ("add_frame, 300 B", 5000)):
            yield _target(f"Redis, {name}: p95, 1 caller", limit, redis["1"][name]["p95"], "µs")
    for store, cases in found.by_part.get("recorder", {}).items():
        worst = max(case["loop"] for case in cases.values())
        yield _target(f"{store}: CPU on the loop per recorded frame, worst case", 10, worst, "µs")
    for sizes in found.by_part.get("memory", {}).values():
        yield _target("memory: bytes of an idle session", 3000, max(sizes.values()), "B")
    for store, sizes in found.by_part.get("growth", {}).items():
        for name in ("create_session", "get_session", "touch_session"):
            few, many = (sizes[size][name]["p50"] for size in ("1000", "100000"))
            measured = f"{few:,.1f} → {many:,.1f} µs, {many / few:.1f} times"
            what = f"{store}: {name}, from 1,000 sessions to 100,000"
            # A few µs more are the processor's caches, in which all of 1,000 sessions have their place.
            yield what, "≤ 2 times, or 5 µs more", measured, report.verdict(many <= max(2 * few, few + 5))
    if found.proxies:
        yield from _proxy_targets(found.proxies)


def _proxy_targets(proxies: storeproxy.Proxies) -> Iterator[tuple[str, str, str, str]]:
    for case in proxies.plan.cases:
        for stack in proxies.plan.stacks:
            _, tape, store = stack.name.split("-")
            if tape == "full" and store != "memory":
                mine = proxies.samples[case.name, stack.name]
                off = proxies.samples[case.name, f"shadowcat-off-{store}"]
                share = median(a.rate / b.rate for a, b in zip(mine, off, strict=True))
                what = f"{store}, tape full, {case.name}: requests/s over tape off"
                yield what, "≥ 80 %", f"{100 * share:.0f} %", report.verdict(share >= 0.8)


def _target(what: str, limit: float, value: float, unit: str) -> tuple[str, str, str, str]:
    digits = 1 if limit < 100 else 0
    return what, f"≤ {limit:,} {unit}", f"{value:,.{digits}f} {unit}", report.verdict(value <= limit)


def _operations(by_store: dict[str, Any]) -> Iterator[str]:
    columns = ("p50", "p95", "CPU loop", "threads", "server")
    headings = ["operation", "store", *columns, *(f"32: {each}" for each in columns), "32: calls/s"]
    names = next(iter(by_store.values()))["1"]
    rows = []
    for name in names:
        for store, found in by_store.items():
            cells = [_cell(found[workers][name], each) for workers in ("1", "32") for each in _FIELDS]
            rows.append((name, store, *cells, f"{found['32'][name]['rate']:,.0f}"))
    yield report.markdown(headings, rows, text=2)


_FIELDS = ("p50", "p95", "loop", "threads", "server")


def _cell(timing: dict[str, float], name: str) -> str:
    value = timing[name]
    if value < 0.05:
        return "–"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _recorder(by_store: dict[str, Any]) -> Iterator[str]:
    rows = [
        (case, store, _cell(found, "loop"), _cell(found, "threads"))
        for store, cases in by_store.items()
        for case, found in cases.items()
    ]
    yield report.markdown(("frame", "store", "loop", "threads"), rows, text=2)


def _growth(by_store: dict[str, Any]) -> Iterator[str]:
    rows = []
    for store, sizes in by_store.items():
        for name in next(iter(sizes.values())):
            timings = [found[name] for found in sizes.values()]
            rows.append((name, store, *(f"{_cell(each, 'p50')} ({_cell(each, 'p95')})" for each in timings)))
    sizes = next(iter(by_store.values()))
    headings = ("operation", "store", *(f"{int(size):,} sessions" for size in sizes))
    yield report.markdown(headings, rows, text=2)


def _memory(by_store: dict[str, Any]) -> Iterator[str]:
    sizes = by_store["memory"]
    rows = [(f"{int(size):,}", f"{found:,.0f}") for size, found in sizes.items()]
    yield report.markdown(("sessions", "bytes each"), rows, text=0)
