"""The app's life: by itself, under a prefix of a host's, twice in one host; and a host that forgot it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from shadowcat import Settings, create_app, lifespan_of
from shadowcat_stores import MemoryStore
from tests.support.events import Events, message
from tests.support.plain import plain_http
from tests.support.proxying import INITIALIZE, Proxied, request
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream


class WatchedStore(MemoryStore):
    """Counts how often it is opened and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = self.closed = 0

    async def open(self) -> None:
        self.opened += 1
        await super().open()

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


async def use(base: str, path: str, app: Any) -> Proxied:
    """Use the proxy at this address as a client does."""
    async with plain_http() as client:
        proxy = Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client, path)
        await proxy.begin()
        assert (await proxy.call()).status_code == 200
    return proxy


async def test_the_lifespan_opens_and_closes_the_store(upstream: ScriptedUpstream) -> None:
    store = WatchedStore()
    app = create_app(store, upstream=upstream.url)
    for turn in (1, 2):
        async with LifespanManager(app):
            assert (store.is_open, store.opened) == (True, turn)
        assert (store.is_open, store.closed) == (False, turn)


async def test_a_store_the_host_opened_stays_open(upstream: ScriptedUpstream) -> None:
    async with WatchedStore() as store:
        async with LifespanManager(create_app(store, upstream=upstream.url)):
            pass
        assert (store.opened, store.closed) == (1, 0)


async def test_what_was_recorded_is_in_the_store_after_the_lifespan(upstream: ScriptedUpstream) -> None:
    async with MemoryStore() as store:
        app = create_app(store, upstream=upstream.url, settings=Settings(record_window=1000))
        async with serve(app) as base:
            proxy = await use(base, "/mcp", app)
        assert len(await store.get_frames(proxy.session_id)) == 4


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_mounted_under_a_prefix(upstream: ScriptedUpstream, framework: Any) -> None:
    proxy = create_app(MemoryStore(), upstream={"default": upstream.url, "named": upstream.url})

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with lifespan_of(proxy):
            yield

    host = framework(lifespan=lifespan)
    host.mount("/gateway", proxy)
    async with serve(host) as base:
        await use(base, "/gateway/mcp", proxy)
        await use(base, "/gateway/named/mcp", proxy)
        async with plain_http() as client:
            for path in ("healthz", "readyz", "metrics"):
                assert (await client.get(f"{base}/gateway/{path}")).status_code == 200
            assert (await client.get(f"{base}/healthz")).status_code == 404


async def test_two_proxies_in_one_host(upstream: ScriptedUpstream) -> None:
    one, two = (create_app(MemoryStore(), upstream=upstream.url) for _ in range(2))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with lifespan_of(one), lifespan_of(two):
            yield

    host = Starlette(routes=[Mount("/one", one), Mount("/two", two)], lifespan=lifespan)
    async with serve(host) as base:
        used = await use(base, "/one/mcp", one)
        await use(base, "/two/mcp", two)
        async with plain_http() as client:
            elsewhere = Proxied(two.state.shadowcat, used.store, base, client, "/two/mcp", used.session_id)
            assert (await elsewhere.call()).status_code == 404


async def test_a_host_that_forgot_the_lifespan_is_told_the_line(upstream: ScriptedUpstream) -> None:
    proxy = create_app(MemoryStore(), upstream=upstream.url)
    host = Starlette(routes=[Mount("/gateway", proxy)])
    async with serve(host) as base, plain_http() as client:
        response = await client.post(base + "/gateway/mcp", json=INITIALIZE)
        assert response.status_code == 500
        assert "async with shadowcat.lifespan_of(proxy): yield" in response.json()["error"]["message"]
        assert (await client.get(base + "/gateway/readyz")).status_code == 503
        assert (await client.get(base + "/gateway/healthz")).status_code == 200
    assert upstream.received == []


async def test_running_twice_at_once_is_refused(upstream: ScriptedUpstream) -> None:
    proxy = create_app(MemoryStore(), upstream=upstream.url)
    async with lifespan_of(proxy):
        with pytest.raises(RuntimeError, match="runs already"):
            async with lifespan_of(proxy):
                pass
        assert proxy.state.shadowcat.running


async def test_a_transport_of_the_hosts_is_used_and_not_closed() -> None:
    class Transport(httpx2.MockTransport):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(
            200, json={"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "2025-06-18"}}
        )

    transport = Transport(answer)
    app = create_app(MemoryStore(), upstream="http://in-process/mcp", transport=transport)
    async with serve(app) as base:
        await use(base, "/mcp", app)
    assert not transport.closed


def test_an_upstream_that_is_none_is_refused_at_once() -> None:
    for upstream in ({}, "localhost", {"a b": "http://x/mcp"}):
        with pytest.raises(ValueError, match="upstream"):
            create_app(MemoryStore(), upstream=upstream)


def test_what_is_no_store_and_no_settings_is_refused_at_once() -> None:
    url = "http://x/mcp"
    for store, upstream, settings in (
        ("memory://", url, None),
        (MemoryStore, url, None),
        (MemoryStore(), url, {"tape": "full"}),
        (MemoryStore(), [url], None),
    ):
        with pytest.raises(TypeError, match=r"store must|settings must|upstream must"):
            create_app(store, upstream=upstream, settings=settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="what create_app returned"):
        lifespan_of(Starlette())


async def test_readiness_and_metrics(upstream: ScriptedUpstream) -> None:
    class Broken(MemoryStore):
        async def ping(self) -> None:
            from shadowcat_stores import StoreUnavailable

            raise StoreUnavailable("it is gone")

    app = create_app(Broken(), upstream=upstream.url)
    async with serve(app) as base, plain_http() as client:
        response = await client.get(base + "/readyz")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"
        assert "it is gone" in response.json()["detail"]
        app.state.shadowcat.drain()
        assert "stopping" in (await client.get(base + "/readyz")).json()["detail"]
        await client.post(base + "/mcp", json=INITIALIZE)
        metrics = (await client.get(base + "/metrics")).text
    assert "shadowcat_client_requests_total 1\n" in metrics
    assert 'shadowcat_upstream_requests_total{reason="forward"} 1\n' in metrics


async def test_draining_does_not_wait_for_a_get_that_has_no_answer_yet(upstream: ScriptedUpstream) -> None:
    asked = anyio.Event()

    async def silent(received: Received, connection: Connection) -> None:
        asked.set()
        await connection.peer_left()

    app = create_app(MemoryStore(), upstream=upstream.url)
    async with serve(app) as base, plain_http() as client:
        proxy = Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client)
        await proxy.begin()
        upstream.script = silent
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:

                async def drain() -> None:
                    await asked.wait()
                    app.state.shadowcat.drain()

                tasks.start_soon(drain)
                async with proxy.stream("GET") as response:
                    assert response.status_code == 503
                    assert response.headers["retry-after"] == "1"


async def test_draining_ends_the_streams_that_answer_no_request(upstream: ScriptedUpstream) -> None:
    async def hold(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b"data: %b\n\n" % received.method.encode())
        await connection.peer_left()

    app = create_app(MemoryStore(), upstream=upstream.url)
    async with serve(app) as base, plain_http() as client:
        proxy = Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client)
        await proxy.begin()
        upstream.script = hold
        async with (
            proxy.stream("GET") as standalone,
            proxy.stream("POST", request("tools/call")) as answering,
        ):
            got, answer = standalone.aiter_raw(), answering.aiter_raw()
            assert (await anext(got)).endswith(b"data: GET\n\n")
            assert (await anext(answer)).endswith(b"data: POST\n\n")
            app.state.shadowcat.drain()
            assert await anext(got) == b"retry: 1000\n\n"
            assert await anext(got, None) is None  # a clean end
            assert proxy.service.streams.session_ids() == {proxy.session_id}
            assert len(proxy.service.streams) == 1  # the answer may finish


async def test_a_host_that_cancels_the_app_when_the_client_leaves_ends_its_streams(
    upstream: ScriptedUpstream,
) -> None:
    left = anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b'data: {"jsonrpc":"2.0","method":"n"}\n\n')
        await connection.peer_left()
        left.set()

    proxy = create_app(MemoryStore(), upstream=upstream.url)

    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope() as call:

            async def watched() -> Any:
                message = await receive()
                if message["type"] == "http.disconnect":
                    call.cancel()
                return message

            await proxy(scope, watched, send)

    async with serve(impatient) as base, plain_http() as client:
        used = Proxied(proxy.state.shadowcat, proxy.state.shadowcat.store, base, client)
        await used.begin()
        upstream.script = script
        with anyio.fail_after(10):
            async with used.stream("POST", request("tools/call", "c-1")) as response:
                first = await Events(response).next()
            await left.wait()
            assert first is not None
            assert first.id is not None
            async with used.stream("GET", **{"Last-Event-ID": first.id}) as response:
                (lost,) = await Events(response).rest()
    assert message(lost)["error"]["data"] == {"reason": "ambiguous_delivery"}
    assert len(upstream.forwarded) == 1


def test_an_app_that_runs_again_in_another_loop_notices_that_clients_leave() -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.query == b"held":
            await anyio.sleep_forever()
        return httpx2.Response(200)

    app = create_app(MemoryStore(), upstream="http://server.test/mcp", transport=httpx2.MockTransport(answer))

    async def ask(query: bytes) -> list[Any]:
        messages = [{"type": "http.disconnect"}, {"type": "http.request"}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/mcp", "query_string": query, "scheme": "http"}
        async with lifespan_of(app):
            with anyio.fail_after(5):
                await app({**scope, "headers": [], "app": app}, receive, send)
        return sent

    assert anyio.run(ask, b"") != []
    assert anyio.run(ask, b"held") == []
