"""What happens between two turns of the loop: connections that are lost just when they are handed over."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from shadowcat.transports._connection import Connection
from shadowcat.transports._exchange import Exchange
from shadowcat.transports._pool import Pool
from tests.transports.wires import Wire

TIMEOUTS = {"connect": 1.0, "pool": 1.0}


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, whose loop lets us stand in for the network."""
    return "asyncio"


class Net:
    """Stands in for the loop's connecting. Wires are dead on arrival while it is `dead`."""

    def __init__(self, quiet: socket.socket) -> None:
        self.quiet = quiet
        self.wires: list[Wire] = []
        self.dead = False

    async def create_connection(self, factory: Any, *args: Any, **options: Any) -> tuple[Wire, Connection]:
        connection = factory()
        wire = Wire(connection, self.quiet)
        wire.aborted = self.dead
        self.wires.append(wire)
        return wire, connection


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    near, far = socket.socketpair()
    with near, far:
        yield Net(near)


async def new_pool(net: Net, monkeypatch: pytest.MonkeyPatch, most: int) -> Pool:
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", net.create_connection)
    return Pool("server.example", 80, None, most, keepalive=2.0)


async def test_a_connection_that_is_closed_at_once_gives_its_place_back(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    net.dead = True
    for _ in range(3):
        with pytest.raises(httpx2.ConnectError):
            await pool.acquire(TIMEOUTS)
    net.dead = False
    await pool.acquire(TIMEOUTS)


async def test_a_connection_lost_on_its_way_to_a_waiter_is_replaced(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    connection = await pool.acquire(TIMEOUTS)
    waiting = asyncio.create_task(pool.acquire(TIMEOUTS))
    await asyncio.sleep(0)
    pool.free(connection)
    connection.eof_received()
    other = await waiting
    assert other is not connection
    assert len(net.wires) == 2
    assert pool.take() is None


async def test_a_connection_that_spoke_on_its_way_to_a_waiter_is_replaced(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    with near, far:
        net.quiet = near
        pool = await new_pool(net, monkeypatch, most=1)
        connection = await pool.acquire(TIMEOUTS)
        waiting = asyncio.create_task(pool.acquire(TIMEOUTS))
        await asyncio.sleep(0)
        far.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        pool.free(connection)
        assert await waiting is not connection
        assert net.wires[0].aborted


@pytest.mark.parametrize("gone", [False, True])
async def test_a_turn_given_to_a_waiter_that_is_cancelled_goes_to_the_next(
    net: Net, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    connection = await pool.acquire(TIMEOUTS)
    first, left, second = (asyncio.create_task(pool.acquire(TIMEOUTS)) for _ in range(3))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    if gone:
        connection.close()
    else:
        pool.free(connection)
    first.cancel()  # its turn has come, and it has not run yet
    await asyncio.wait([first])
    assert first.cancelled()
    assert (await second is connection) != gone


async def test_waiters_that_have_left_are_forgotten(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    await pool.acquire(TIMEOUTS)
    for _ in range(3):
        with pytest.raises(httpx2.PoolTimeout):
            await pool.acquire({"pool": 0.0})
    assert not pool._waiters


async def test_a_response_that_ends_before_its_request_ends_the_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    connection = await pool.acquire(TIMEOUTS)
    exchange = Exchange(connection, "POST", None)
    connection.start(exchange, b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n", is_all=False)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await exchange.head()
    assert net.wires[0].aborted


async def test_a_response_that_is_closed_unread_does_not_look_empty(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    connection = await pool.acquire(TIMEOUTS)
    exchange = Exchange(connection, "GET", None)
    connection.start(exchange, b"GET / HTTP/1.1\r\n\r\n", is_all=True)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await exchange.aclose()
    with pytest.raises(httpx2.ReadError):
        await anext(exchange)
    assert pool.take() is connection


async def test_idle_connections_are_closed_one_by_one(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await new_pool(net, monkeypatch, most=3)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    later: list[tuple[float, Any]] = []

    def call_later(delay: float, callback: Any) -> Any:
        later.append((delay, callback))
        return asyncio.get_running_loop().call_soon(lambda: None)

    connections = [await pool.acquire(TIMEOUTS) for _ in range(2)]
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    for connection in connections:
        pool.free(connection)
        now += 1.5
    assert [delay for delay, _ in later] == [2.0]  # one timer for all
    now = 1002.0
    later[0][1]()
    assert [wire.aborted for wire in net.wires] == [True, False]
    assert [delay for delay, _ in later] == [2.0, 1.5]
    now = 1003.5
    later[1][1]()
    assert [wire.aborted for wire in net.wires] == [True, True]
    assert len(later) == 2


async def test_a_connection_that_has_expired_is_not_used(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await new_pool(net, monkeypatch, most=1)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool.free(await pool.acquire(TIMEOUTS))
    now += 1.999
    connection = pool.take()
    assert connection is not None
    pool.free(connection)
    now += 2.0
    assert pool.take() is None
    assert net.wires[0].aborted
    pool.close()
