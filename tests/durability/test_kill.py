"""The proxy is killed in the middle of its work, again and again: what clients were told stays true."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import httpx2
import pytest

from shadowcat_stores import Frame, store_from_url
from tests.durability._load import Conversation, Moments, NumberedServer
from tests.support.plain import plain_http
from tests.support.serve_command import DEADLINE, Served, serve_command
from tests.support.upstream import ScriptedUpstream

_CLIENTS = 6
_LATEST_MOMENT = 400
"""How many messages pass at most before the proxy is killed: about 0.3 s of them."""

_SLACK = 0.5
"""Seconds that a store write and a busy machine may add to the window. Usually it is a few milliseconds."""


class Killing:
    """A series of proxies on one store, each killed while its clients are at it."""

    def __init__(self, upstream: ScriptedUpstream, store_url: str, window: float, seed: int) -> None:
        self.server = NumberedServer(upstream)
        self.lost: list[int] = []
        """How many frames that a client had received were lost, by kill."""
        self.oldest = 0.0
        """How long before its kill the oldest of them was received."""
        self.told: set[str] = set()
        """The sessions that a client was told of."""
        self._random = random.Random(seed)
        self._upstream = upstream
        self._store_url = store_url
        self._window = window
        self._conversations: list[Conversation] = []

    async def run(self, kills: int) -> None:
        """Kill so many; at the end all goes on."""
        for _ in range(kills):
            async with self._proxy() as (served, http):
                await self._go_on(served.url)
                self._conversations += [
                    Conversation(http) for _ in range(_CLIENTS - len(self._conversations))
                ]
                await self._talk_until_the_kill(served)
            await self._compare()
        async with self._proxy() as (served, _):
            await self._go_on(served.url)

    @asynccontextmanager
    async def _proxy(self) -> AsyncIterator[tuple[Served, httpx2.AsyncClient]]:
        settings = {"record_window": self._window, "tape": "full"}
        async with (
            plain_http() as http,
            serve_command(self._upstream.url, self._store_url, **settings) as served,
        ):
            for each in self._conversations:
                each.http = http
            yield served, http

    async def _go_on(self, url: str) -> None:
        """Call in every session of before, under the same id."""
        for each in self._conversations:
            await each.call(url)

    async def _talk_until_the_kill(self, served: Served) -> None:
        moment = self._random.randint(1, _LATEST_MOMENT)
        self._moments = Moments(moment, lambda: served.command.send(signal.SIGKILL))
        self.server.moments = self._moments
        async with anyio.create_task_group() as tasks:
            for each in self._conversations:
                each.moments = self._moments
                tasks.start_soon(self._talk, each, served.url)
        assert await served.command.ends() == -signal.SIGKILL
        self.server.moments = None

    async def _talk(self, conversation: Conversation, url: str) -> None:
        with suppress(httpx2.TransportError):  # the kill
            if not conversation.session_id:
                await conversation.begin(url)
            while True:
                await conversation.call(url, self._random.choice((0, 0, 1, 4)))
        assert self._moments.struck_at, "a connection was lost though nobody was killed"

    async def _compare(self) -> None:
        """Compare what the clients know with what the store holds."""
        begun = [each for each in self._conversations if each.session_id]
        self.told |= {each.session_id for each in begun}
        lost = 0
        async with store_from_url(self._store_url) as store:
            assert (await store.get_sessions_batch(self.told)).keys() == self.told
            for each in begun:
                each.moments = None
                lost += self._compare_tape(each, await store.get_frames(each.session_id))
        self.lost.append(lost)
        assert set(self.server.executed.values()) <= {1}
        # Half of the sessions live on with the next proxy; beside them others begin.
        self._conversations = self._random.sample(begun, min(len(begun), _CLIENTS // 2))

    def _compare_tape(self, conversation: Conversation, tape: Sequence[Frame]) -> int:
        lost = conversation.check(tape)
        for item in lost:
            if item.received_at is not None:
                age = self._moments.struck_at - item.received_at
                self.oldest = max(self.oldest, age)
                assert self._window > 0, f"forwarded before it was durable: {item}"
                assert age <= self._window + _SLACK, f"lost {age:.3f} s after it was received: {item}"
        return len(lost)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed leaves no coverage, and starts in half the time without."""
    for name in [each for each in os.environ if each.startswith("COVERAGE")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("store_url", "window", "kills"),
    [("sqlite", 0.05, 18), ("sqlite", 0, 14), ("redis", 0.05, 18)],
    indirect=["store_url"],
)
async def test_a_kill_loses_no_session_and_no_frame_older_than_the_window(
    upstream: ScriptedUpstream, store_url: str, window: float, kills: int
) -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    killing = Killing(upstream, store_url, window, seed)
    with anyio.fail_after(DEADLINE):
        await killing.run(kills)
    print(  # noqa: T201
        f"{kills} kills, {len(killing.told)} sessions, {sum(killing.server.executed.values())} calls, "
        f"frames lost {min(killing.lost)} to {max(killing.lost)}, the oldest {killing.oldest * 1000:.0f} ms"
    )
