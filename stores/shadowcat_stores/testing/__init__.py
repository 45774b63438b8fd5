"""The contract of a session store as tests, for whoever writes one. Needs the extra `testing`.

A store passes the contract by subclassing with one method:

    from shadowcat_stores.testing import SessionStoreContract

    class TestMyStore(SessionStoreContract):
        async def make_store(self, clock, limits):
            return MyStore(clock=clock, limits=limits)

pytest makes a new instance of the class for each test, which is what tells backends apart: stores made by
one instance are on one backend, and a new instance begins with an empty one. A store with a server behind
it gives each instance a place of its own there, in a fixture:

    class TestMyStore(SessionStoreContract):
        @pytest.fixture(autouse=True)
        def place(self, my_server):
            self.url, self.prefix = my_server.url, f"test-{uuid4()}:"

        async def make_store(self, clock, limits):
            return MyStore(self.url, prefix=self.prefix, clock=clock, limits=limits)

`make_store` returns a store that is not open: the tests open and close it. They call it in the event loop
that the store will be used in; some tests use several loops, one after the other, so nothing that belongs
to a loop may be kept on the instance. Tests run on asyncio by anyio's pytest plugin, never wait for real
time to pass, and each cites the clause it is for. `store_state_machine` drives a store and a plain model
of one side by side.

What the suite cannot see from outside, a store's own tests have to show: that a client object passed in is
not closed (clause 10), that an outage of the backend is `StoreUnavailable` (clause 8), and that an `open`
which failed leaves the store closed and succeeds once the backend is mended (clause 10). The suite itself
cancels openings, at every step.
"""

# ruff: noqa: E402 - the tests have to be registered for pytest's rewriting of asserts before their import

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("batches", "frames", "life", "machine", "sessions")),
    *(f"{__name__}.{module}" for module in ("sharing", "streams", "verbs", "whole")),
)

from shadowcat_stores.testing.batches import BatchClause
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.frames import FrameClauses
from shadowcat_stores.testing.harness import clauses_of
from shadowcat_stores.testing.life import LifeClauses
from shadowcat_stores.testing.machine import MakeStore, store_state_machine
from shadowcat_stores.testing.sessions import SessionClauses
from shadowcat_stores.testing.sharing import SharingClause
from shadowcat_stores.testing.streams import StreamClauses
from shadowcat_stores.testing.whole import WholeClause


class SessionStoreContract(
    SessionClauses, WholeClause, FrameClauses, StreamClauses, BatchClause, LifeClauses, SharingClause
):
    """Every clause of `SessionStore`, as tests. Override `make_store` (see the module)."""


__all__ = ["FakeClock", "MakeStore", "SessionStoreContract", "clauses_of", "store_state_machine"]
