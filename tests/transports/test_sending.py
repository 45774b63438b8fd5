"""What is sent of a request, and what becomes of it when the server does not wait for its end."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import anyio
import h11
import httpx2
import pytest

from shadowcat.transports._request import request_head, whole_body
from tests.support.upstream import ScriptedUpstream
from tests.transports.callers import Upload, until
from tests.transports.wires import a_request, through_http1

Calling = Callable[..., Any]


def head_of(request: httpx2.Request) -> tuple[bytes, int | None]:
    return request_head(request.method, request.url.raw_path, request.headers.raw)


LARGE = b"x" * 4 * 1024 * 1024


class Raw:
    """A server that sees requests as bytes, and answers as it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.heads: list[bytes] = []
        self.script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def raw() -> Any:
    served = Raw()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0, limit=2**14)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp?a=%20b"
    yield served
    server.close()
    await until(lambda: not served.open)


def respond(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 2", "", "ok"]).encode()


async def test_a_request_is_sent_as_it_is_given(raw: Raw, calling: Calling) -> None:
    bodies = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await reader.readexactly(3))
        writer.write(respond("200 OK"))

    raw.script = script
    async with calling(raw.url) as caller:
        headers = [("X-Twice", "1"), ("x-twice", "2"), ("Empty", ""), (b"Latin", b"\xe9"), ("Cookie", "a=b")]
        assert await caller.call(body=b"abc", headers=headers) == (200, b"ok")
    host = raw.url.split("/")[2].encode()
    assert raw.heads == [
        b"POST /mcp?a=%20b HTTP/1.1\r\nHost: " + host + b"\r\nX-Twice: 1\r\nx-twice: 2\r\nEmpty: \r\n"
        b"Latin: \xe9\r\nCookie: a=b\r\nContent-Length: 3\r\n\r\n"
    ]
    assert bodies == [b"abc"]


@pytest.mark.parametrize(
    "headers",
    [
        [("A", "b\r\nC: d")],
        [("A", "b\nC: d")],
        [("A", "b\rC: d")],
        [("A", "b\0")],
        [("A\r\nB", "c")],
        [("A: b", "c")],
        [("", "c")],
        [("A B", "c")],
        [("Content-Length", "1")],
        [("content-length", "+0")],
        [("Transfer-Encoding", "gzip")],
    ],
)
async def test_requests_that_could_be_taken_for_others_are_not_sent(
    upstream: ScriptedUpstream, calling: Calling, headers: Any
) -> None:
    async with calling(upstream.url) as caller:
        with pytest.raises(httpx2.LocalProtocolError):
            await caller.call(headers=headers)
    assert upstream.received == []


def test_a_body_of_two_lengths_is_not_sent() -> None:
    """The stock transport sends it."""
    for headers in (
        [("Transfer-Encoding", "chunked"), ("Content-Length", "0")],
        [("Content-Length", "0"), ("Transfer-Encoding", "chunked")],
    ):
        with pytest.raises(httpx2.LocalProtocolError):
            head_of(a_request(headers=headers))


@pytest.mark.parametrize("method", ["GET /x HTTP/1.1\r\nA:", "G ET", "G\r\nET"])
def test_methods_that_are_none_are_not_sent(method: str) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        head_of(a_request(method))


@pytest.mark.parametrize("body", [b"", b"ab", b"abcd"])
def test_a_body_of_another_length_is_not_sent(body: bytes) -> None:
    request = a_request(headers=[("Content-Length", "3")], stream=httpx2.ByteStream(body))
    with pytest.raises(httpx2.LocalProtocolError):
        whole_body(request, head_of(request)[1])


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_in_pieces(raw: Raw, calling: Calling, framing: str) -> None:
    pieces = (b"one", b"", b"three", b"x" * 300_000)
    came = b""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came = b""
        if framing == "length":
            came = await reader.readexactly(300_008)
        else:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                came += (await reader.readexactly(size + 2))[:-2]
            assert await reader.readexactly(2) == b"\r\n"
        writer.write(respond("200 OK"))

    raw.script = script
    header = ("Content-Length", "300008") if framing == "length" else ("Transfer-Encoding", "chunked")
    async with calling(raw.url) as caller:
        for _ in range(2):
            assert await caller.call(body=Upload(*pieces), headers=[header]) == (200, b"ok")
            assert came == b"".join(pieces)


@pytest.mark.parametrize("pieces", [(b"ab",), (b"ab", b"cd")])
async def test_a_body_in_pieces_of_another_length_ends_the_connection(
    raw: Raw, calling: Calling, pieces: tuple[bytes, ...]
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(respond("200 OK"))

    raw.script = script
    async with calling(raw.url, max_connections=1) as caller:
        for _ in range(2):
            # The stock transport lets h11's own error out.
            with pytest.raises((httpx2.LocalProtocolError, h11.LocalProtocolError)):
                await caller.call(body=Upload(*pieces), headers=[("Content-Length", "3")])


@pytest.mark.parametrize("body", ["whole", "pieces"])
async def test_an_error_before_the_end_of_the_request(
    raw: Raw, calling: Calling, is_ours: bool, body: str
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(respond("413 Too Large")[:-1])
        await done.wait()  # and reads no more
        writer.write(b"k")
        await writer.drain()
        raise ConnectionError

    raw.script = refuse
    async with calling(raw.url, max_connections=1) as caller:
        for _ in range(2):
            done = anyio.Event()
            upload: Any = LARGE * 8 if body == "whole" else Upload(*[LARGE] * 8)
            headers = [] if body == "whole" else [("Content-Length", str(len(LARGE) * 8))]
            with anyio.fail_after(10):
                if is_ours:
                    response = await caller.send(body=upload, headers=headers)
                    assert response.status_code == 413
                    assert body == "whole" or upload.taken < 8
                    done.set()
                    assert b"".join([chunk async for chunk in response.stream]) == b"ok"
                else:
                    # The stock transport sends to the end before it reads.
                    with pytest.raises(httpx2.WriteTimeout):
                        await caller.call(body=upload, headers=headers, write=0.2)
            done.set()


async def test_a_response_before_the_end_of_the_request_ends_the_connection() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert (await through_http1([raw])).kept
    early = await through_http1([raw], unsent=1)
    assert (early.status, early.error, early.kept) == (200, None, False)


async def test_a_success_before_the_end_of_the_request_does_not_stop_it(raw: Raw, calling: Calling) -> None:
    came = 0

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        while came < len(LARGE) * 2:
            came += len(await reader.read(65536))
        writer.write(b"ok")

    raw.script = early
    async with calling(raw.url) as caller:
        headers = [("Content-Length", str(len(LARGE) * 2))]
        with anyio.fail_after(10):
            assert await caller.call(body=Upload(LARGE, LARGE), headers=headers) == (200, b"ok")
    assert came == len(LARGE) * 2


async def test_a_server_that_does_not_read_is_given_up(raw: Raw, calling: Calling) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        raise ConnectionError

    raw.script = deaf
    done = anyio.Event()
    async with calling(raw.url, max_connections=1) as caller:
        headers = [("Content-Length", str(len(LARGE) * 8))]
        with anyio.fail_after(10), pytest.raises(httpx2.WriteTimeout):
            await caller.call(body=Upload(*[LARGE] * 8), headers=headers, write=0.05)
    done.set()


@pytest.mark.parametrize("when", ["head", "body"])
async def test_a_server_that_is_silent_is_given_up(raw: Raw, calling: Calling, when: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if when == "body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await reader.read()

    raw.script = silent
    async with calling(raw.url, max_connections=1) as caller:
        for _ in range(2):
            with anyio.fail_after(10), pytest.raises(httpx2.ReadTimeout):
                await caller.call(read=0.05)


LOST = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"])
@pytest.mark.parametrize("how", ["close", "reset", "half close"])
async def test_a_connection_that_breaks_is_ambiguous(
    raw: Raw, calling: Calling, begun: bytes, how: str
) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        await writer.drain()
        if how == "half close":
            writer.write_eof()
            await reader.read()
        elif how == "reset":
            at_once = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            writer.transport.abort()
        raise ConnectionError

    raw.script = cut
    async with calling(raw.url, max_connections=1) as caller:
        for number in range(3):
            with anyio.fail_after(5), pytest.raises(LOST):
                await caller.call(body=b"x")
            assert len(raw.heads) == number + 1


async def test_a_body_that_ends_with_the_connection_ends_by_a_half_close(raw: Raw, calling: Calling) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        writer.write_eof()
        await reader.read()

    raw.script = half
    async with calling(raw.url) as caller:
        with anyio.fail_after(5):
            assert await caller.call() == (200, b"hello")


async def test_slow_bytes(raw: Raw, calling: Calling) -> None:
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in response:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    raw.script = drip
    async with calling(raw.url) as caller:
        for _ in range(3):
            assert await caller.call() == (200, b"hello")
