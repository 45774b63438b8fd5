"""An upstream that lets a stream be resumed, and then keeps silent on it."""

from __future__ import annotations

import anyio
import pytest

from tests.support.proxying import proxied, request
from tests.support.upstream import Connection, Received, ScriptedUpstream, result


class Silent:
    """Breaks the answer off, refuses the first who comes back, tells the second nothing, the third all."""

    def __init__(self) -> None:
        self.after: list[bytes | None] = []
        """The ids that it was asked to go on after."""

    async def __call__(self, received: Received, connection: Connection) -> None:
        if received.method == "POST":
            await connection.start_stream()
            await connection.chunk(b"id: e-1\ndata: " + _PROGRESS + b"\n\n")
            connection.cut()
            return
        self.after.append(received.header(b"last-event-id"))
        if len(self.after) == 1:
            await connection.respond(b"busy", status="409 Conflict")
            return
        await connection.start_stream()
        if len(self.after) == 2:
            await connection.chunk(b": still here\n\n")
            await connection.peer_left()
            return
        await connection.chunk(b"id: e-2\ndata: " + result(1, "done") + b"\n\n")
        await connection.peer_left()


_PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'


async def test_it_is_asked_again_until_it_has_the_answer(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.live._FIRST_SILENCE", 0.05)
    upstream.script = silent = Silent()
    # A silence is no failure: it does not count against what a stream is given to recover.
    async with proxied(upstream.url, recover_seconds=0.5, reconnect_after=400) as proxy:
        with anyio.fail_after(5):
            await proxy.begin()
            async with proxy.stream("POST", request("tools/call")) as response:
                data = [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]
    assert [each.encode() for each in data] == [_PROGRESS, result(1, "done")]
    assert silent.after == [b"e-1"] * 3
