"""The page about the peers: the target first, then the tables."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from . import report
from .peers import Found, Plan, Row
from .processes import Cores

REAL = """\
The server is one on the Python SDK, and answers with SSE; each peer has one of its own. It needs more time
for a call than a fast proxy does, so it, and not the proxy, is the limit at the top of the table. `requests
per call`: what arrived at the server while calls were made, over the calls: HTTP requests, or lines on
stdin. `runs per call`: how often the tool ran. A server on stdio shares the core of its proxy."""
STUB = """\
The same in front of the benchmarks' stub, which answers at once, in JSON: here the proxies are the limit.
Only those that reach a server over HTTP."""
NOTES = """\
{rounds} rounds of {seconds:g} s after {warmup:g} s of warm-up, interleaved; medians, ratios taken within a
round. 16 connections, each with a session of its own; 4, or 1, where a peer gave a wrong answer or none with
more. Each answer is checked."""
HEADINGS = ("proxy", "server", "connections", "calls/s", "÷ direct", "p50 ms", "p99 ms")
COUNTS = ("requests per call", "runs per call")


def page(plan: Plan, found: Found, cores: Cores, versions: str) -> str:
    parts = [f"# {report.today()}: peers", report.machine(cores, other=versions)]
    if checks := list(targets(found)):
        parts += ["## Target", report.markdown(("what", "target", "measured", "verdict"), checks, text=4)]
    if found.real:
        rows = [(*_row(row, found.real), *_counts(row)) for row in found.real]
        parts += ["## A real server", REAL, report.markdown((*HEADINGS, *COUNTS), rows, text=2)]
    if found.stub:
        rows = [_row(row, found.stub) for row in found.stub]
        parts += ["## A server that answers at once", STUB, report.markdown(HEADINGS, rows, text=2)]
    parts += [f"Not measured: {each}" for each in found.broken]
    return "\n\n".join([*parts, NOTES.format(**vars(plan))]) + "\n"


def targets(found: Found) -> Iterator[tuple[str, str, str, str]]:
    """Shadowcat over the fastest peer from HTTP to HTTP."""
    ours = next((row for row in found.stub if row.peer.name == "shadowcat" and row.runs), None)
    peers = [row for row in found.stub if row.peer.environment and row.runs]
    if ours and peers:
        fastest = max(peers, key=_rate)
        ratio = _over(ours, fastest)
        what = f"calls/s over the fastest peer's from HTTP to HTTP ({fastest.peer.label})"
        yield what, "≥ 20 ×", f"{ratio:.1f} ×", report.verdict(ratio >= 20)


def _rate(row: Row) -> float:
    return median(float(run["rate"]) for run in row.runs)


def _over(mine: Row, other: Row) -> float:
    pairs = zip(mine.runs, other.runs, strict=False)
    return median(float(a["rate"] / b["rate"]) for a, b in pairs if b["rate"])


def _row(row: Row, among: list[Row]) -> tuple[str, ...]:
    server = "stdio" if row.peer.stdio else "HTTP"
    if not row.runs:
        return row.peer.label, server, str(row.connections), "–", "–", "–", "–"
    direct = next((each for each in among if each.peer.name == "direct" and each.runs), None)
    errors = sum(sum(run["errors"].values()) for run in row.runs)
    return (
        row.peer.label,
        server,
        str(row.connections),
        f"{_rate(row):,.0f}" + (f" (**{errors} errors**)" if errors else ""),
        f"{_over(row, direct):.2f}" if direct else "–",
        *(
            f"{median(run['latency_us'].get(each, 0) for run in row.runs) / 1000:,.1f}"
            for each in ("p50", "p99")
        ),
    )


def _counts(row: Row) -> tuple[str, ...]:
    calls = sum(run["calls"] for run in row.runs)
    counted = (sum(run["ledger"][each] for run in row.runs) for each in ("requests", "runs"))
    return tuple(f"{each / calls:.2f}" if calls else "–" for each in counted)
