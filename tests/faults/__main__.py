"""Run fault schedules: `python -m tests.faults --seed S`, or `--count N [--start S]`."""

from __future__ import annotations

import sys

import anyio
import click

from tests.faults.report import explain, replay, run_all, run_seed
from tests.faults.schedule import HELD, WHOLE


@click.command()
@click.option("--seed", type=int, help="Run this schedule alone, and tell all that happens.")
@click.option("--count", default=100, show_default=True, help="How many schedules to run.")
@click.option("--start", default=0, show_default=True, help="The first one's seed.")
@click.option("--jobs", default=2, show_default=True, help="How many run at a time.")
@click.option("--whole", is_flag=True, help="With every kind of fault, also those not yet survived.")
def main(seed: int | None, count: int, start: int, jobs: int, whole: bool) -> None:
    """Run random schedules of faults against the proxy, and say what was lost."""
    promise = WHOLE if whole else HELD
    if seed is not None:
        done, verdict = anyio.run(run_seed, seed, promise)
        click.echo(explain(done, verdict, whole))
        sys.exit(bool(verdict.problems))
    totals, explanations = anyio.run(run_all, range(start, start + count), promise, jobs)
    for each in explanations:
        click.echo(each + "\n")
    click.echo(str(totals))
    for failed in totals.failed:
        click.echo(f"failed: {replay(failed, whole)}")
    sys.exit(bool(totals.failed))


main()
