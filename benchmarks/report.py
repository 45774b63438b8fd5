"""The tables, and the machine they were measured on."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from . import nginx, targets
from .bench import Case, Plan, Sample, Samples
from .processes import ROOT, Cores
from .stacks import Stack

PACKAGES = ("shadowcat-mcp", "uvloop", "httptools", "starlette", "uvicorn", "httpx2", "msgspec")

HEADINGS = (
    "proxy",
    "requests/s",
    "± %",
    "÷ direct",
    "÷ nginx",
    "p50 µs",
    "p99 µs",
    "added p50 µs",
    "CPU µs/request",
    "× nginx CPU",
    "core busy %",
    "RSS MB",
)

NOTES = """\
{rounds} rounds of {seconds:g} s each after {warmup:g} s of warm-up, interleaved. Values are medians over the
rounds; ratios are taken within a round, then their median. `± %`: half of the distance between the best and
the worst round. `added`: over direct. `CPU`: user and system time of the proxy's processes. `core busy`: how
much of its core the proxy used; well below 100 it waited for the stub and the load, so compare CPU, not
requests/s. `RSS`: the most that was seen after a run.

Other programs used {others:.0f} % of a core meanwhile, {worst:.0f} % at worst: from about 5 % on, trust only
the ratios, and those not blindly."""


def page(plan: Plan, samples: Samples, cores: Cores, missing: Iterable[Stack]) -> str:
    parts = [f"# {today()}: requests through the proxy", machine(cores)]
    if checks := list(targets.check(samples)):
        parts += ["## Targets", markdown(("what", "target", "measured", "verdict"), checks, text=4)]
    for case in plan.cases:
        parts += [f"## {case.title}", table(case, plan.stacks, samples)]
    parts += [f"Left out: {stack.label}: {stack.missing}." for stack in missing]
    return "\n\n".join([*parts, notes(plan, samples)]) + "\n"


def notes(plan: Plan, samples: Samples) -> str:
    others = [100 * sample.others for runs in samples.values() for sample in runs]
    worst = max(others)
    return NOTES.format(**vars(plan), others=median(others), worst=worst)


def table(case: Case, stacks: list[Stack], samples: Samples) -> str:
    direct, yardstick = (samples.get((case.name, name)) for name in ("direct", "nginx"))
    rows = [(stack.label, *row(samples[case.name, stack.name], direct, yardstick)) for stack in stacks]
    return markdown(HEADINGS, rows)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """A table whose first columns, `text` of them, are words."""
    rule = [*["---"] * text, *["---:"] * (len(headings) - text)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *rows))


def row(mine: list[Sample], direct: list[Sample] | None, yardstick: list[Sample] | None) -> tuple[str, ...]:
    errors = sum(sum(sample.errors.values()) for sample in mine)
    rates = [sample.rate for sample in mine]
    rate = median(rates)
    spread = 50 * (max(rates) - min(rates)) / rate if rate else 0
    cpus = [sample.cpu for sample in mine if sample.cpu is not None]
    busy = [sample.cpu * sample.rate / 1e4 for sample in mine if sample.cpu is not None]
    return (
        f"{rate:,.0f}" + (f" (**{errors} errors**)" if errors else ""),
        f"{spread:.0f}",
        compare(mine, direct, lambda a, b: a.rate / b.rate),
        compare(mine, yardstick, lambda a, b: a.rate / b.rate),
        f"{median(sample.p50 for sample in mine):,.0f}",
        f"{median(sample.p99 for sample in mine):,.0f}",
        compare(mine, direct, lambda a, b: a.p50 - b.p50, "{:,.0f}") if cpus else "–",
        f"{median(cpus):,.1f}" if cpus else "–",
        compare(mine, yardstick, lambda a, b: (a.cpu or 0) / (b.cpu or 1), "{:.1f}") if cpus else "–",
        f"{median(busy):.0f}" if busy else "–",
        f"{max(sample.rss for sample in mine) / 1e6:,.0f}" if cpus else "–",
    )


def compare(
    mine: list[Sample],
    theirs: list[Sample] | None,
    measure: Callable[[Sample, Sample], float],
    form: str = "{:.2f}",
) -> str:
    """The median over the rounds of what `measure` says of the two samples of one round."""
    pairs = [(a, b) for a, b in zip(mine, theirs or [], strict=False) if b.rate]
    return form.format(median(measure(a, b) for a, b in pairs)) if pairs else "–"


def machine(cores: Cores, packages: Sequence[str] = PACKAGES, other: str = "") -> str:
    """What was measured on, and with; `other` is a program beside, nginx where nothing is said."""
    said = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    models = [value.strip() for name, _, value in said if name.strip() == "model name"]
    return "\n".join(
        [
            f"- machine: {models[0] if models else platform.machine()}, {len(models)} cores; {cores}",
            f"- system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
            "- versions: " + ", ".join(f"{name} {installed(name)}" for name in packages),
            f"- {other or f'nginx {nginx.version()}'}; commit {commit()}",
        ]
    )


def verdict(kept: bool) -> str:
    return "kept" if kept else "**missed**"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def commit() -> str:
    """What was measured, and whether the working copy had changes."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
