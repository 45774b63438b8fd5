"""A bounded number of random schedules; `make faults N=1000` runs more."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.report import explain, run_seed
from tests.faults.schedule import HELD, WHOLE, schedule

SEEDS = (*range(14), 22, 23)


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_and_nothing_comes_twice(seed: int) -> None:
    """What goes wrong once in a hundred runs of a schedule is for `make faults` to find: no two interleave
    alike, so one that fails is run once more."""
    done, verdict = await run_seed(seed)
    if verdict.problems:
        done, verdict = await run_seed(seed)
    if verdict.problems:
        pytest.fail(explain(done, verdict), pytrace=False)


def test_a_schedule_follows_from_its_seed_alone() -> None:
    assert [schedule(seed, WHOLE) for seed in range(50)] == [schedule(seed, WHOLE) for seed in range(50)]
    assert len({str(schedule(seed, WHOLE)) for seed in range(50)}) == 50


def test_the_seeds_of_make_test_have_every_fault_that_is_survived() -> None:
    seen = Counter((each.upstream, fault.kind) for each in map(schedule, SEEDS) for fault in each.faults)
    stores = {(each.store, each.replicas) for each in map(schedule, SEEDS)}
    assert {kind for _, kind in seen} == {kind for kinds in HELD.faults.values() for kind in kinds}
    assert stores == {("sqlite", 1), ("sqlite", 2), ("redis", 1), ("redis", 2)}
