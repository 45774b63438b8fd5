"""The page about streams: the targets first, then the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from . import report
from .bench import Sample as BenchSample
from .crowd import BESIDE, Pair
from .processes import Cores
from .streams import STARTS, Case, Found, Plan, Sample

PACED = """\
Latency: from the moment when the stub sends an event to the moment when the client has it, by one clock.
`CPU`: of the proxy, while all streams run. Shadowcat numbers and records with the tape on, and passes
bytes with the tape off."""
FLOOD = """\
The stub sends as fast as it can get rid of events. `direct` is what stub and client manage together, on
one core where there are two. `recorded`, `outrun` and `dropped`: frames over all rounds. The tape holds a
window, and what newer frames have pushed out of it before it was written is `outrun`; what the store cannot
take is dropped from the tape, not from the stream."""
FIRST = (
    "From the request to the first event, at the client; the stream ends 2 ms later, and the next one begins."
)
IDLE = """\
Streams of a session each that have brought one event, and wait: growth of the proxy's resident memory
from the first stream on, sessions not included, by stream. `CPU`: of all of them together, as part of a
core."""
CALLS = """\
`tools/call` answered in JSON, 1 connection: at a proxy with {beside:,} idle streams, and at another one
of the same kind without; in turns."""
START = "From the start of the process to the first 200 of `/readyz`, {starts} times; seconds."
NOTES = """\
{rounds} rounds of {seconds:g} s, interleaved; store of Shadowcat: {store}. Values are medians over the
rounds; ratios and differences are taken within a round. Other programs used {others:.0f} % of a core
meanwhile, {worst:.0f} % at worst: from about 5 % on, trust only the ratios, and those not blindly."""

Row = tuple[str, ...]


def page(plan: Plan, found: Found, cores: Cores) -> str:
    parts = [f"# {report.today()}: streams through the proxy", report.machine(cores)]
    if checks := list(targets(found)):
        parts += ["## Targets", report.markdown(("what", "target", "measured", "verdict"), checks, text=4)]
    for case in plan.cases:
        note, headings, row = _TABLES[case.kind]
        rows = [(stack.label, *row(found, case, stack.name)) for stack in found.stacks]
        parts += [f"## {case.title}", note, report.markdown(headings, rows)]
    parts += _crowds(found)
    if found.starts:
        rows = [_start_row(_label(found, name), seconds) for name, seconds in found.starts.items() if seconds]
        headings = ("", "p50", "least", "most")
        parts += ["## Start", START.format(starts=STARTS), report.markdown(headings, rows)]
    parts += [f"Not measured: {each}" for each in found.broken]
    runs = [100 * each.others for each in _all(found)] or [float("nan")]
    notes = NOTES.format(**vars(plan), others=median(runs), worst=max(runs))
    return "\n\n".join([*parts, notes]) + "\n"


def _all(found: Found) -> Iterator[Sample | BenchSample]:
    yield from (each for samples in found.samples.values() for each in samples)
    yield from (each for pairs in found.calls.values() for pair in pairs for each in pair)


def _label(found: Found, name: str) -> str:
    return next((stack.label for stack in found.stacks if stack.name == name), name)


# events


def _paced_row(found: Found, case: Case, name: str) -> Row:
    mine, direct, nginx = _three(found, case.name, name)
    return (
        f"{median(each.events for each in mine):,.0f}{_errors(mine)}",
        f"{median(each.p50 for each in mine):,.0f}",
        f"{median(each.p95 for each in mine):,.0f}",
        _compared(mine, direct, lambda a, b: a.p50 - b.p50, "{:,.0f}") if mine is not direct else "–",
        _compared(mine, direct, lambda a, b: a.p95 - b.p95, "{:,.0f}") if mine is not direct else "–",
        *_cpu(mine, nginx, "{:.1f}"),
    )


def _flood_row(found: Found, case: Case, name: str) -> Row:
    mine, direct, nginx = _three(found, case.name, name)
    frames = found.frames.get(name, {})
    return (
        f"{median(each.events for each in mine):,.0f}{_errors(mine)}",
        _compared(mine, direct, lambda a, b: a.events / b.events, "{:.2f}"),
        _compared(mine, nginx, lambda a, b: a.events / b.events, "{:.2f}"),
        *_cpu(mine, nginx, "{:.2f}"),
        *(
            f"{frames[each]:,}" if frames else "–"
            for each in ("frames_recorded", "frames_outrun", "frames_dropped")
        ),
    )


def _first_row(found: Found, case: Case, name: str) -> Row:
    return _paced_row(found, case, name)[:5]


def _three(found: Found, case: str, name: str) -> tuple[list[Sample], list[Sample], list[Sample]]:
    mine, direct, nginx = (found.samples.get((case, each), []) for each in (name, "direct", "nginx"))
    return mine, direct, nginx


def _errors(mine: list[Sample]) -> str:
    errors = {what for each in mine for what in each.errors}
    return f" (**{', '.join(sorted(errors))}**)" if errors else ""


def _cpu(mine: list[Sample], nginx: list[Sample], form: str) -> Row:
    used = [each.cpu for each in mine if each.cpu is not None]
    if not used:
        return "–", "–"
    return form.format(median(used)), _compared(
        mine, nginx, lambda a, b: (a.cpu or 0) / (b.cpu or 1), "{:.1f}"
    )


def _compared(
    mine: list[Sample], theirs: list[Sample], measure: Callable[[Sample, Sample], float], form: str
) -> str:
    value = _ratio(mine, theirs, measure)
    return "–" if value is None else form.format(value)


def _ratio(
    mine: list[Sample], theirs: list[Sample], measure: Callable[[Sample, Sample], float]
) -> float | None:
    """The median over the rounds of what `measure` says of the two samples of one round."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=False) if a.events and b.events]
    return median(measure(a, b) for a, b in pairs) if pairs else None


_LATENCY = ("proxy", "events", "p50 µs", "p95 µs", "added p50", "added p95")
_USED = ("CPU µs/event", "× nginx CPU")
_TABLES: dict[str, tuple[str, Row, Callable[[Found, Case, str], Row]]] = {
    "paced": (PACED, (*_LATENCY, *_USED), _paced_row),
    "flood": (
        FLOOD,
        ("proxy", "events/s", "÷ direct", "÷ nginx", *_USED, "recorded", "outrun", "dropped"),
        _flood_row,
    ),
    "first": (FIRST, _LATENCY, _first_row),
}

# streams


def _crowds(found: Found) -> Iterator[str]:
    for title, by_stack in (("Idle streams", found.attached), ("Adopted streams", found.adopted)):
        if not any(by_stack.values()):
            continue
        sizes = sorted({size for each in by_stack.values() for size in each})
        headings = ["proxy", *(f"{size:,}: {what}" for size in sizes for what in ("kB each", "CPU %"))]
        rows = [
            (_label(found, name), *(cell for size in sizes for cell in _crowd_cells(each.get(size))))
            for name, each in by_stack.items()
            if each
        ]
        yield f"## {title}"
        yield IDLE if by_stack is found.attached else "The same after the clients have left."
        yield report.markdown(headings, rows)
    if any(found.calls.values()):
        yield f"## Calls beside {BESIDE:,} idle streams"
        yield CALLS.format(beside=BESIDE)
        headings = ["proxy", "p50 µs alone", "beside", "ratio", "CPU µs/request alone", "beside", "ratio"]
        rows = [(_label(found, name), *_calls_row(pairs)) for name, pairs in found.calls.items() if pairs]
        yield report.markdown(headings, rows)


def _crowd_cells(cell: dict[str, float] | None) -> Row:
    if cell is None:
        return "–", "–"
    missing = f" (**{cell['missing']:+.0f} missing**)" if cell["missing"] else ""
    return f"{cell['bytes'] / 1000:.1f}{missing}", f"{100 * cell['cpu']:.1f}"


def _calls_row(pairs: list[Pair]) -> Row:
    alone, beside = zip(*pairs, strict=True)
    errors = {what for pair in pairs for each in pair for what in each.errors}
    return (
        f"{median(each.p50 for each in alone):,.0f}{f' (**{errors}**)' if errors else ''}",
        f"{median(each.p50 for each in beside):,.0f}",
        f"{median(b.p50 / a.p50 for a, b in pairs):.2f}",
        f"{median(each.cpu or 0 for each in alone):,.1f}",
        f"{median(each.cpu or 0 for each in beside):,.1f}",
        f"{_calls_cpu(pairs):.2f}",
    )


def _calls_cpu(pairs: list[Pair]) -> float:
    return median((b.cpu or 0) / (a.cpu or 1) for a, b in pairs)


def _start_row(label: str, seconds: list[float]) -> Row:
    return label, *(f"{each:.3f}" for each in (median(seconds), min(seconds), max(seconds)))


# targets


def targets(found: Found) -> Iterator[tuple[str, str, str, str]]:
    """What is promised of streams, and whether it was kept."""
    for tape, limit in (("off", 2.0), ("window", 2.5)):
        for case in ("paced-16", "paced-1"):
            mine, _, nginx = _three(found, case, f"shadowcat-{tape}")
            ratio = _ratio(mine, nginx, lambda a, b: (a.cpu or 0) / (b.cpu or 1))
            if ratio is not None:
                yield _most(f"{case}, tape {tape}: CPU per event over nginx's", limit, ratio, "times")
    for tape, least in (("off", 1_000_000), ("window", 150_000)):
        if flood := found.samples.get(("flood", f"shadowcat-{tape}")):
            rate = median(each.events for each in flood)
            what = f"flood, tape {tape}: events/s"
            yield what, f"≥ {least:,}", f"{rate:,.0f}", report.verdict(rate >= least)
    for tape in ("off", "window"):
        for size, cell in found.attached.get(f"shadowcat-{tape}", {}).items():
            what = f"{size:,} idle streams, tape {tape}: each"
            yield _most(what, 25, cell["bytes"] / 1000, "kB")
    if pairs := found.calls.get("shadowcat-window"):
        what = f"a call beside {BESIDE:,} idle streams, tape window"
        yield _most(f"{what}: p50", 1.1, median(b.p50 / a.p50 for a, b in pairs), "times", 2)
        yield _most(f"{what}: CPU", 1.1, _calls_cpu(pairs), "times", 2)
    if starts := found.starts.get("shadowcat-window"):
        yield _most("start until `/readyz`: p50", 0.5, median(starts), "s", 2)


def _most(what: str, limit: float, value: float, unit: str, digits: int = 1) -> tuple[str, str, str, str]:
    return what, f"≤ {limit:g} {unit}", f"{value:,.{digits}f} {unit}", report.verdict(value <= limit)
