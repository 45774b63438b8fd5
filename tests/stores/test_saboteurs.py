"""The contract suite is itself tested: a store with one defect fails the tests of one clause and no other."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import anyio
import pytest

from shadowcat_stores import MemoryStore, SessionStore, StoreLimits
from shadowcat_stores._memory_index import Index
from shadowcat_stores.testing import FakeClock, SessionStoreContract, clauses_of
from tests.stores.saboteurs import ONE_TEST, SABOTEURS
from tests.stores.shared import SharedMemoryStore

CLAUSES = clauses_of(SessionStoreContract)


class Case(SessionStoreContract):
    """The contract of a class of stores, run without pytest: it would take longer to start than the tests."""

    patience: ClassVar[float] = 0.5
    examples: ClassVar[int] = 5

    def __init__(self, store_class: type[MemoryStore]) -> None:
        self.store_class = store_class
        self.index = Index()

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        if issubclass(self.store_class, SharedMemoryStore):
            return self.store_class(self.index, clock=clock, limits=limits)
        return self.store_class(clock=clock, limits=limits)


def run_test(case: Case, name: str, arguments: dict[str, object]) -> None:
    test = getattr(case, name)
    if not inspect.iscoroutinefunction(test):
        test(**arguments)
        return

    async def run() -> None:
        wanted = inspect.signature(test).parameters
        clock = FakeClock()
        async with AsyncExitStack() as stack:

            async def opened(limits: StoreLimits) -> SessionStore:
                return await stack.enter_async_context(await case.make_store(clock, limits))

            fixtures: dict[str, Any] = {"clock": clock}
            if "store" in wanted:
                fixtures["store"] = await opened(StoreLimits())
            if "pair" in wanted:
                limits = StoreLimits(sessions=10)
                fixtures["pair"] = (await opened(limits), await opened(limits))
            await test(**{each: fixtures[each] for each in wanted if each in fixtures}, **arguments)

    anyio.run(run)


def parameters_of(test: Callable[..., object]) -> Iterator[dict[str, object]]:
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    tables = []
    for mark in marks:
        names, rows = mark.args
        if isinstance(names, str):
            tables.append([{names: row} for row in rows])
        else:
            tables.append([dict(zip(names, row, strict=True)) for row in rows])
    for rows in itertools.product(*tables):
        yield {name: value for row in rows for name, value in row.items()}


def failing_tests(store_class: type[MemoryStore]) -> list[str]:
    failed = []
    for name, number in CLAUSES.items():
        if number == 11 and not store_class.shared:
            continue
        for arguments in parameters_of(getattr(Case, name)):
            try:
                run_test(Case(store_class), name, arguments)
            except (Exception, BaseExceptionGroup, pytest.fail.Exception):  # noqa: BLE001 - any way to fail
                failed.append(name)
                break
    return failed


@pytest.mark.parametrize("store_class", [MemoryStore, SharedMemoryStore])
def test_an_honest_store_fails_nothing(store_class: type[MemoryStore]) -> None:
    assert failing_tests(store_class) == []


@pytest.mark.parametrize(("number", "store_class"), SABOTEURS)
def test_a_saboteur_fails_exactly_its_clause(number: int, store_class: type[MemoryStore]) -> None:
    failed = failing_tests(store_class)
    assert {CLAUSES[name] for name in failed} == {number}, failed
    if store_class in ONE_TEST:
        assert failed == [ONE_TEST[store_class]]


def test_every_clause_has_a_saboteur() -> None:
    assert {number for number, _ in SABOTEURS} == set(CLAUSES.values())
