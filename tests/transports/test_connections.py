"""How connections are shared, kept, waited for and given up."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.upstream import Connection, Received, ScriptedUpstream
from tests.transports.callers import until

Calling = Callable[..., Any]


async def answer(received: Received, connection: Connection) -> None:
    await connection.respond(b"hello")


async def hold(received: Received, connection: Connection) -> None:
    await connection.start_stream()
    await connection.chunk(b"first")
    await connection.peer_left()


class Ports:
    """Notes which connection each request came by."""

    def __init__(self, script: Any = answer) -> None:
        self.script = script
        self.seen: list[int] = []

    async def __call__(self, received: Received, connection: Connection) -> None:
        self.seen.append(connection.writer.get_extra_info("peername")[1])
        await self.script(received, connection)

    @property
    def different(self) -> int:
        return len(set(self.seen))


@pytest.fixture
def ports(upstream: ScriptedUpstream) -> Ports:
    upstream.handshake = ports = Ports()
    return ports


async def until_closed(upstream: ScriptedUpstream) -> None:
    """Return when the server has seen the end of all its connections."""
    await until(lambda: not upstream.connections)


async def test_a_connection_is_kept(upstream: ScriptedUpstream, ports: Ports, calling: Calling) -> None:
    async with calling(upstream.url) as caller:
        for _ in range(10):
            assert await caller.call(body=b"x") == (200, b"hello")
        assert ports.different == 1
    await until_closed(upstream)


async def test_a_connection_is_free_before_the_body_is_read(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling, is_ours: bool
) -> None:
    async with calling(upstream.url) as caller, caller.stream() as chunks:
        await caller.call()
        assert [chunk async for chunk in chunks] == [b"hello"]
        # The stock transport keeps it until the response is closed.
        assert ports.different == (1 if is_ours else 2)


async def test_requests_at_the_same_time_have_connections_of_their_own(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    ports.script = hold
    async with calling(upstream.url) as caller:
        with anyio.fail_after(5):
            async with caller.stream() as one, caller.stream() as other:
                assert (await anext(one), await anext(other)) == (b"first", b"first")
        assert ports.different == 2
        await until_closed(upstream)


async def test_an_idle_connection_expires(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.monotonic
    async with calling(upstream.url, keepalive=2.0) as caller:
        await caller.call()
        monkeypatch.setattr(time, "monotonic", lambda: real() + 1.9)
        await caller.call()
        monkeypatch.setattr(time, "monotonic", lambda: real() + 4.0)
        await caller.call()
        assert ports.seen[0] == ports.seen[1] != ports.seen[2]


async def test_idle_connections_are_closed_without_a_request(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling, is_ours: bool
) -> None:
    if not is_ours:
        return  # the stock transport looks at them when the next request comes
    async with calling(upstream.url, keepalive=0.05) as caller:
        async with caller.stream(), caller.stream():
            pass
        await until_closed(upstream)
        await caller.call()
        await until_closed(upstream)


async def test_a_connection_closed_while_idle_is_replaced(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    async def answer_and_close(received: Received, connection: Connection) -> None:
        await connection.respond(b"hello")
        connection.writer.close()

    ports.script = answer_and_close
    async with calling(upstream.url) as caller:
        for _ in range(5):
            assert await caller.call() == (200, b"hello")
            await until_closed(upstream)
    assert ports.different == 5


async def test_a_connection_that_says_something_while_idle_is_replaced(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    late = anyio.Event()

    async def answer_twice(received: Received, connection: Connection) -> None:
        await answer(received, connection)
        await late.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npoison!")
        await connection.peer_left()

    async with calling(upstream.url) as caller:
        ports.script = answer_twice
        await caller.call()
        late.set()
        ports.script = answer
        # Nothing of ours is told of it: another connection takes a round trip meanwhile.
        async with await anyio.connect_tcp("127.0.0.1", upstream.server.sockets[0].getsockname()[1]) as other:
            await other.send(b"GET / HTTP/1.1\r\n\r\n")
            await other.receive()
        assert await caller.call() == (200, b"hello")


def test_a_close_that_the_loop_has_not_noticed_yet(variant: str, calling: Calling) -> None:
    """The server closes while the loop is busy: no turn of it lies between the close and the next request."""
    listener = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                if not closed.is_set():
                    may_close.wait(5)
            closed.set()

    may_close = threading.Event()
    server = threading.Thread(target=serve)
    server.start()

    async def twice() -> None:
        async with calling(f"http://127.0.0.1:{listener.getsockname()[1]}/") as caller:
            await caller.call()
            before = time.monotonic()
            may_close.set()
            assert closed.wait(5)
            while time.monotonic() < before + 0.002:
                pass
            assert await caller.call() == (200, b"")

    try:
        if variant.endswith("uvloop"):
            import uvloop

            uvloop.run(twice())
        else:
            asyncio.run(twice())
    finally:
        server.join(5)
        listener.close()


async def test_a_request_waits_for_a_connection(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    async with calling(upstream.url, max_connections=2) as caller:
        with anyio.fail_after(5):
            results = await asyncio.gather(*(caller.call() for _ in range(50)))
    assert results == [(200, b"hello")] * 50
    assert ports.different == 2


async def test_the_wait_for_a_connection_is_bounded(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    async with calling(upstream.url, max_connections=1) as caller:
        ports.script = hold
        async with caller.stream():
            with pytest.raises(httpx2.PoolTimeout):
                await caller.send(pool=0.01)
            waiting = asyncio.create_task(caller.call())
            await asyncio.sleep(0)
            ports.script = answer
        with anyio.fail_after(5):
            assert await waiting == (200, b"hello")
    assert len(ports.seen) == 2


@pytest.mark.parametrize("how", ["left", "answered"])
async def test_a_waiter_that_is_cancelled_leaves_its_turn_to_the_next(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling, how: str
) -> None:
    goes_on = anyio.Event()

    async def answer_later(received: Received, connection: Connection) -> None:
        await goes_on.wait()
        await answer(received, connection)

    async with calling(upstream.url, max_connections=1) as caller:
        ports.script = answer_later
        first = asyncio.create_task(caller.call())
        await until(lambda: bool(ports.seen))
        waiters = [asyncio.create_task(caller.call()) for _ in range(6)]
        for _ in range(5):
            await asyncio.sleep(0)
        waiters[0].cancel()
        if how == "left":
            first.cancel()  # frees the place, not the connection
        goes_on.set()
        ports.script = answer
        await asyncio.wait([first])
        # Whose turn it is now may have been told, and not have run yet.
        for waiter in waiters[1:5]:
            waiter.cancel()
        with anyio.fail_after(5):
            assert await waiters[5] == (200, b"hello")
        await asyncio.wait(waiters)
        assert await caller.call() == (200, b"hello")


@pytest.mark.parametrize("when", ["connecting", "head", "body"])
async def test_a_cancelled_request_closes_its_connection(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling, when: str
) -> None:
    async def silent(received: Received, connection: Connection) -> None:
        await connection.peer_left()

    ports.script = silent if when == "head" else hold
    async with calling(upstream.url, max_connections=1) as caller:
        for number in (1, 2, 3):
            task = asyncio.create_task(caller.call())
            if when != "connecting":
                await until(lambda number=number: len(ports.seen) == number)  # type: ignore[misc]
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await until_closed(upstream)
        ports.script = answer
        assert await caller.call() == (200, b"hello")


async def test_a_response_that_is_closed_early_closes_its_connection(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    ports.script = hold
    async with calling(upstream.url, max_connections=1) as caller:
        for _ in range(3):
            async with caller.stream() as chunks:
                assert await anext(chunks) == b"first"
            with pytest.raises(httpx2.ReadError):
                await anext(chunks)
            await until_closed(upstream)


async def test_a_response_closed_by_somebody_else_ends_the_read(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    ports.script = hold
    async with calling(upstream.url) as caller:
        response = await caller.send()
        chunks = aiter(response.stream)
        assert await anext(chunks) == b"first"
        reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        await response.stream.aclose()
        with anyio.fail_after(5), pytest.raises(httpx2.ReadError):
            await reading


async def test_a_transport_that_is_closed_ends_what_is_under_way_and_serves_again(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling
) -> None:
    ports.script = hold
    async with calling(upstream.url) as caller:
        async with caller.stream() as chunks:
            assert await anext(chunks) == b"first"
            await caller.transport.aclose()
            with anyio.fail_after(5), pytest.raises(httpx2.TransportError):
                await anext(chunks)
        ports.script = answer
        assert await caller.call() == (200, b"hello")


async def test_servers_that_cannot_be_reached(calling: Calling) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        async with calling(url, max_connections=1) as caller:
            for _ in range(3):  # each gives its place back
                with pytest.raises(httpx2.ConnectError):
                    await caller.send(pool=0.5)
    for url, error in (
        ("http://no-such-host.invalid/", httpx2.ConnectError),
        ("ftp://127.0.0.1/", httpx2.UnsupportedProtocol),
    ):
        async with calling(url) as caller:
            with pytest.raises(error):
                await caller.send()


async def test_the_wait_for_a_connection_to_open_is_bounded(calling: Calling) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with calling(f"http://127.0.0.1:{address[1]}/", max_connections=1) as caller:
            for _ in range(2):
                with pytest.raises(httpx2.ConnectTimeout):
                    await caller.send(connect=0.05, pool=0.5)
        for filler in fillers:
            filler.close()


async def test_limits_are_per_server(
    upstream: ScriptedUpstream, ports: Ports, calling: Calling, is_ours: bool
) -> None:
    ports.script = hold
    async with calling(upstream.url, max_connections=1) as caller, caller.stream():
        caller.url = upstream.url.replace("127.0.0.1", "localhost")
        ports.script = answer
        if is_ours:
            assert await caller.call() == (200, b"hello")
        else:
            with pytest.raises(httpx2.PoolTimeout):
                await caller.call(pool=0.01)
