"""What a store on `KeyValueStore` gets: the contract on three primitives, at a cost that does not grow."""

import pytest

from shadowcat_stores import SessionStore, StoreLimits
from shadowcat_stores.testing import FakeClock, SessionStoreContract, store_state_machine
from tests.stores.keyvalue import DictStore


class TestKeyValueStore(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def backend(self) -> None:
        self.items: dict[bytes, bytes] = {}

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return DictStore(self.items, clock=clock, limits=limits)


async def make_key_value_store(clock: FakeClock, limits: StoreLimits) -> SessionStore:
    return DictStore({}, clock=clock, limits=limits)


TestKeyValueStoreAsAMachine = store_state_machine(make_key_value_store)
