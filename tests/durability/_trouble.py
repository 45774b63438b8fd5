"""What a proxy must say and do while its store is in trouble, and when it is not any more."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2

from shadowcat_stores import store_from_url
from tests.durability._load import Conversation, NumberedServer
from tests.support.proxying import ACCEPT, INITIALIZE, request
from tests.support.serve_command import Served

STORE_TIMEOUT = 0.5
SLACK = 0.5
"""Seconds that an answer may come later on a busy machine."""

_JSON = {"Accept": ACCEPT, "Content-Type": "application/json"}


@dataclass
class Patient:
    """A proxy whose store is about to be in trouble, with a session of before."""

    served: Served
    http: httpx2.AsyncClient
    server: NumberedServer
    conversation: Conversation
    store_url: str

    async def refuses_new_sessions(self) -> None:
        """Check that there is a 503 in time, and nothing is kept in memory instead."""
        await self._is_refused(INITIALIZE, {})

    async def refuses_the_session(self) -> None:
        """Check that a request that needs the session gets a 503 in time, and does not go upstream."""
        before = self.server.executed.total()
        session = {"Mcp-Session-Id": self.conversation.session_id}
        await self._is_refused(request("tools/call", "refused", {"events": 0}), session)
        assert self.server.executed.total() == before

    async def _is_refused(self, message: Any, headers: dict[str, str]) -> None:
        begun = time.monotonic()
        response = await self.http.post(self.served.url, json=message, headers={**_JSON, **headers})
        took = time.monotonic() - begun
        assert response.status_code == 503, response.text
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["id"] == message["id"]
        assert response.json()["error"]["data"] == {"reason": "store_down"}
        assert "mcp-session-id" not in response.headers
        assert took < STORE_TIMEOUT + SLACK

    async def goes_on_without_a_session(self) -> None:
        """Check that what needs no store is answered."""
        headers = {**_JSON, "MCP-Protocol-Version": "2026-07-28"}
        message = request("tools/call", "stateless", {"events": 2})
        response = await self.http.post(self.served.url, json=message, headers=headers)
        assert response.status_code == 200
        assert response.text.count("data: ") == 3
        assert (await self.http.get(self.served.base + "/healthz")).status_code == 200

    async def is_not_ready(self, reason: str) -> None:
        """Check that `/readyz` says so, and why."""
        response = await self.http.get(self.served.base + "/readyz")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert re.search(reason, response.json()["detail"]), response.text

    async def heals(self) -> float:
        """Return the seconds until it is ready and has stored what waited."""
        begun = time.monotonic()
        while (await self.http.get(self.served.base + "/readyz")).status_code != 200:
            await anyio.lowlevel.checkpoint()
        while await self.served.metric(self.http, "recorder_waiting_frames"):
            await anyio.lowlevel.checkpoint()
        return time.monotonic() - begun

    async def has_lost_nothing(self) -> None:
        """Check that the session goes on, and that its tape holds all of it."""
        await self.conversation.call(self.served.url, 2)
        while await self.served.metric(self.http, "recorder_waiting_frames"):
            await anyio.lowlevel.checkpoint()
        async with store_from_url(self.store_url) as store:
            assert self.conversation.check(await store.get_frames(self.conversation.session_id)) == []
            assert len(self.conversation.items) == self.conversation.known
        assert await self.served.metric(self.http, "frames_dropped_total") == 0
