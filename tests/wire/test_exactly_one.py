"""One client request becomes at most one upstream request, whatever happens. The two counters say so too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import httpx2
import pytest

from tests.support.proxying import Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.upstream import Connection, Received, ScriptedUpstream, echo


def status(line: str, *headers: tuple[str, str]) -> Callable[[Received, Connection], Awaitable[None]]:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(b"", *headers, status=line)

    return script


async def cut_at_once(received: Received, connection: Connection) -> None:
    connection.cut()


async def cut_half_way(received: Received, connection: Connection) -> None:
    await connection.start_stream()
    await connection.chunk(b"data: x\n\n")
    connection.writer.close()


async def never(received: Received, connection: Connection) -> None:
    await connection.peer_left()


SCRIPTS = {
    "json": echo,
    "301": status("301 Moved Permanently", ("Location", "/mcp/")),
    "302": status("302 Found", ("Location", "/mcp/")),
    "307": status("307 Temporary Redirect", ("Location", "/mcp/")),
    "401": status("401 Unauthorized", ("WWW-Authenticate", "Bearer")),
    "404": status("404 Not Found"),
    "429": status("429 Too Many Requests", ("Retry-After", "0")),
    "500": status("500 Internal Server Error"),
    "503": status("503 Service Unavailable", ("Retry-After", "0")),
    "cut at once": cut_at_once,
    "cut half way": cut_half_way,
    "never": never,
}


def audited(proxy: Proxied) -> tuple[int, int]:
    counters = proxy.service.counters
    return counters.client_requests, sum(counters.upstream_requests.values())


@pytest.mark.parametrize("tape", ["off", "window"])
@pytest.mark.parametrize("name", SCRIPTS)
async def test_one_client_request_is_one_upstream_request(
    upstream: ScriptedUpstream, name: str, tape: str
) -> None:
    # Long enough for the handshake on a busy machine, and waited for by every call that is never answered.
    timeout, calls = (0.5, 2) if name == "never" else (None, 5)
    async with proxied(upstream.url, tape=tape, response_timeout=timeout, restore_sessions=False) as proxy:
        await proxy.begin()
        upstream.script = SCRIPTS[name]
        for number in range(calls):
            try:
                await proxy.call(request_id=number)
            except httpx2.RemoteProtocolError:
                assert name == "cut half way"
        assert len(upstream.forwarded) == calls
        assert audited(proxy) == (1 + calls, 1 + calls)


async def test_clients_that_leave_cause_one_request_each(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    begun = [anyio.Event() for _ in range(10)]

    async def script(received: Received, connection: Connection) -> None:
        begun[received.message["id"]].set()
        await connection.peer_left()

    await proxy.begin()
    upstream.script = script
    with anyio.fail_after(5):
        for number, each in enumerate(begun):
            async with raw_client(proxy.url) as (_, writer):
                message = request("tools/call", number)
                writer.write(raw_request(proxy.url, "POST", message, Mcp_Session_Id=proxy.session_id))
                await each.wait()
    assert len(upstream.forwarded) == 10
    assert audited(proxy) == (11, 11)


async def test_a_connection_the_server_closed_while_idle_is_replaced(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def answer_and_close(received: Received, connection: Connection) -> None:
        await echo(received, connection)
        connection.writer.close()
        closed.set()

    await proxy.begin()
    upstream.script = answer_and_close
    for number in range(20):
        closed = anyio.Event()
        assert (await proxy.call(request_id=number)).status_code == 200
        await closed.wait()
        # The proxy's end has been told before this answer is through.
        assert (await proxy.client.get(proxy.base + "/healthz")).status_code == 200
    assert len(upstream.forwarded) == 20
