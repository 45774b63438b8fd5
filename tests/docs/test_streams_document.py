"""What docs/streams.md shows: its client loses nothing, its error and its defaults are the code's."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat import Settings
from tests.docs._markdown import ROOT, blocks
from tests.support.plain import plain_http
from tests.support.proxying import Proxied, proxied, request
from tests.support.upstream import Connection, Received, ScriptedUpstream, result

DOCUMENT = (ROOT / "docs" / "streams.md").read_text("utf-8")
CALL = request("tools/call", "c-1")


def shown() -> Any:
    """Return the function that the document shows."""
    (block,) = (each for each in blocks("python", "module") if each.names == ("call",))
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec", dont_inherit=True), names)  # noqa: S102
    return names["call"]


class Fragile(httpx2.AsyncHTTPTransport):
    """Loses the connection of every response after its first bytes, and says so to the server's side."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = anyio.Event()
        self.asked: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        response = await super().handle_async_request(request)
        if response.headers["content-type"] == "text/event-stream":
            response.stream = Cut(response.stream, self)
        return response


class Cut(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, transport: Fragile) -> None:
        self._stream = stream
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
            await self.aclose()
            self._transport.lost.set()
            self._transport.lost = anyio.Event()
            raise httpx2.ReadError("cut by the test")

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.fixture
async def transport() -> AsyncIterator[Fragile]:
    async with Fragile() as fragile:
        yield fragile


def headers(proxy: Proxied) -> dict[str, str]:
    return {"Accept": "application/json, text/event-stream", "Mcp-Session-Id": proxy.session_id}


async def test_its_client_gets_every_message_once_whatever_is_cut(
    upstream: ScriptedUpstream, transport: Fragile
) -> None:
    messages = [json.dumps({"jsonrpc": "2.0", "method": "n", "params": n}).encode() for n in range(3)]
    messages.append(result("c-1", "done"))

    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        for each in messages:
            lost = transport.lost
            await connection.chunk(b"retry: 0\ndata: " + each + b"\n\n")
            await lost.wait()
        await connection.end_stream()

    async with proxied(upstream.url) as proxy, plain_http(transport=transport) as client:
        await proxy.begin()
        upstream.script = script
        client.headers.update(headers(proxy))
        with anyio.fail_after(20):
            got = [message async for message in shown()(client, proxy.url, CALL)]
    assert got == [json.loads(each) for each in messages]
    assert [each.method for each in upstream.forwarded] == ["POST"]
    assert [each.method for each in transport.asked][:2] == ["POST", "GET"]
    assert len(transport.asked) == len(messages)


async def test_its_client_takes_a_plain_answer(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url) as proxy, plain_http() as client:
        await proxy.begin()
        client.headers.update(headers(proxy))
        (answer,) = [message async for message in shown()(client, proxy.url, CALL)]
    assert answer["id"] == "c-1"


def test_the_defaults_are_the_code_s() -> None:
    _, _, table = DOCUMENT.partition("<!-- settings -->\n")
    rows = re.findall(r"^\| `(\w+)` \| `(\S+)` \| .+ \|$", table.partition("\n\n")[0], re.MULTILINE)
    assert len(rows) == table.partition("\n\n")[0].count("\n") - 1
    for name, default in rows:
        value = getattr(Settings(), name)
        assert default == (f"{value:g}" if isinstance(value, float) else str(value)), name
