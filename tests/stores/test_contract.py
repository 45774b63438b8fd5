"""Stores that keep their word pass the shipped contract, and the contract covers every clause."""

import re
import unittest

import pytest
from hypothesis import Phase, settings

from shadowcat_stores import MemoryStore, SessionStore, StoreLimits
from shadowcat_stores._memory_index import Index
from shadowcat_stores.testing import FakeClock, SessionStoreContract, clauses_of, store_state_machine
from tests.stores.shared import SharedMemoryStore


class TestMemoryStore(SessionStoreContract):
    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return MemoryStore(clock=clock, limits=limits)


class TestSharedMemoryStore(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def backend(self) -> None:
        self.index = Index()

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return SharedMemoryStore(self.index, clock=clock, limits=limits)


class PlainBatches(MemoryStore):
    """Takes the verbs that the contract itself brings."""

    get_sessions_batch = SessionStore.get_sessions_batch
    update_sessions_batch = SessionStore.update_sessions_batch
    add_frames = SessionStore.add_frames


class TestPlainBatches(SessionStoreContract):
    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return PlainBatches(clock=clock, limits=limits)


async def make_memory_store(clock: FakeClock, limits: StoreLimits) -> SessionStore:
    return MemoryStore(clock=clock, limits=limits)


TestMemoryStoreAsAMachine = store_state_machine(make_memory_store)


class ForgetfulStore(MemoryStore):
    """Loses a claim whenever frames are deleted: a defect that takes a history of several calls to see."""

    async def delete_frames(self, session_id: str) -> int:
        entry = self._find(session_id)
        if entry is not None:
            entry.streams = None
        return await super().delete_frames(session_id)


def test_the_state_machine_finds_a_defect() -> None:
    async def make_forgetful_store(clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return ForgetfulStore(clock=clock, limits=limits)

    case = store_state_machine(make_forgetful_store, examples=500)
    case.settings = settings(case.settings, phases=[Phase.generate], derandomize=True)  # type: ignore[attr-defined]
    result = unittest.TestResult()
    case("runTest").run(result)
    assert "AssertionError" in result.failures[0][1]


def test_every_clause_has_a_test_and_every_test_a_clause() -> None:
    numbered = re.findall(r"^ +(\d+)\. \*\*", SessionStore.__doc__ or "", re.MULTILINE)
    assert set(clauses_of(SessionStoreContract).values()) == {int(number) for number in numbered}
    assert len(numbered) == 17


async def test_a_contract_without_a_store_says_what_to_override() -> None:
    with pytest.raises(NotImplementedError, match="make_store"):
        await SessionStoreContract().make_store(FakeClock(), StoreLimits())
