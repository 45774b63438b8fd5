"""Servers are reached over TLS only if they are who they should be."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat.transports import HTTP1Transport
from tests.support.tls import server_context
from tests.support.upstream import Connection, Received, ScriptedUpstream
from tests.transports.callers import until

Calling = Callable[..., Any]


class Secure(ScriptedUpstream):
    """A scripted upstream behind TLS, and what it is known by."""

    trusted: ssl.SSLContext
    port: int


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    context, known_by = server_context(tmp_path)
    context.set_alpn_protocols(["h2", "http/1.1"])
    secure = Secure()
    server = secure.server = await asyncio.start_server(secure.accept, "127.0.0.1", 0, ssl=context)
    secure.port = server.sockets[0].getsockname()[1]
    secure.url = f"https://localhost:{secure.port}/mcp"
    secure.trusted = ssl.create_default_context(cafile=known_by)
    yield secure
    server.close()
    await secure.aclose()


@pytest.fixture
def trusting(calling: Calling, secure: Secure, is_ours: bool) -> Calling:
    def trusting(url: str) -> Any:
        if is_ours:
            return calling(url, HTTP1Transport(ssl_context=secure.trusted))
        return calling(url, httpx2.AsyncHTTPTransport(verify=secure.trusted))

    return trusting


async def test_a_server_that_is_trusted(secure: Secure, trusting: Calling) -> None:
    protocols = []

    async def large(received: Received, connection: Connection) -> None:
        protocols.append(connection.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await connection.respond(received.body)

    secure.handshake = large
    body = b"x" * 1_000_000
    async with trusting(secure.url) as caller:
        for _ in range(3):
            with anyio.fail_after(10):
                assert await caller.call(body=body) == (200, body)
    assert protocols == ["http/1.1"] * 3


async def test_a_server_that_nobody_vouches_for(secure: Secure, calling: Calling) -> None:
    async with calling(secure.url, max_connections=1) as caller:
        for _ in range(2):
            with pytest.raises(httpx2.ConnectError, match=r"\[SSL: CERTIFICATE_VERIFY_FAILED\]"):
                await caller.send(pool=1.0)
    assert secure.received == []


async def test_a_server_of_another_name(secure: Secure, trusting: Calling) -> None:
    async with trusting(f"https://127.0.0.1:{secure.port}/") as caller:
        with pytest.raises(httpx2.ConnectError, match=r"\[SSL: CERTIFICATE_VERIFY_FAILED\]"):
            await caller.send()
    assert secure.received == []


async def test_a_server_that_speaks_no_tls(trusting: Calling) -> None:
    def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
        async with trusting(url) as caller:
            with anyio.fail_after(5), pytest.raises(httpx2.ConnectError, match="SSL"):
                await caller.send()


async def test_a_client_that_speaks_no_tls(secure: Secure, calling: Calling) -> None:
    async with calling(secure.url.replace("https", "http")) as caller:
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)), anyio.fail_after(5):
            await caller.send()


async def test_streams_over_tls_end_and_close(secure: Secure, trusting: Calling) -> None:
    async def stream(received: Received, connection: Connection) -> None:
        close = "close" if received.body else "keep-alive"
        await connection.start_stream(("Connection", close))
        await connection.chunk(b"hello")
        if received.body:
            await connection.end_stream()
            connection.writer.close()
        await connection.peer_left()

    secure.handshake = stream
    with anyio.fail_after(10):
        async with trusting(secure.url) as caller:
            assert await caller.call(body=b"end") == (200, b"hello")
            async with caller.stream() as chunks:
                assert await anext(chunks) == b"hello"
            await until(lambda: not secure.connections)
