"""What the app's requests share, and its life: opened by the lifespan, closed by it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
import httpx2

from shadowcat.counters import Counters
from shadowcat.errors import ShadowcatError
from shadowcat.gets import Gets
from shadowcat.owners import Owners
from shadowcat.proxy import Proxy
from shadowcat.recorder import Recorder
from shadowcat.sessions import SessionManager
from shadowcat.settings import DEFAULT_UPSTREAM, Settings
from shadowcat.signals import on_signals
from shadowcat.streams import LiveStreams
from shadowcat.transports import http_transport
from shadowcat.upstream import Upstream
from shadowcat.watch import Watches
from shadowcat_stores import SessionStore, StoreError, StoreUnavailable, StoreUnusable

logger = logging.getLogger("shadowcat")

_KEEP_ALIVE_EVERY = 30.0
_LAST_WORDS = 1.0
"""Seconds for streams to say how they end."""
_REOPEN_EVERY = 0.5
"""Seconds between attempts to open a store that was down when the app started."""


class Service:
    """The store, the upstreams and the recorder of one app.

    The app closes over it; nothing of it lives in lifespan state, which a mounted app does not get.
    """

    def __init__(
        self,
        store: SessionStore,
        upstreams: Mapping[str, str],
        settings: Settings,
        transport: httpx2.AsyncBaseTransport | None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.counters = Counters()
        self.owners = Owners(store, settings.replica_lease)
        self.streams = LiveStreams(self.owners, store, settings)
        self.watches = Watches()
        """Of all requests that are being answered."""
        self.recorder = Recorder(store, settings, self.counters, self.owners.is_alone)
        self.running = False
        self._grace: asyncio.TimerHandle | None = None
        self._owned: httpx2.AsyncBaseTransport | None = None
        if transport is None:
            transport = self._owned = http_transport(settings)
        self.proxies = {
            name: Proxy(
                Upstream(name, url, transport, settings, self.counters),
                SessionManager(store, settings, name),
                self.recorder,
                self.streams,
                Gets(store, self.recorder, self.streams, settings),
                settings,
                self.counters,
            )
            for name, url in upstreams.items()
        }

    @property
    def draining(self) -> bool:
        """Whether it is about to stop."""
        return self.streams.draining

    def paths(self, name: str) -> list[str]:
        """Return the paths that the upstream of this name is served at, below where the app is mounted."""
        named = [] if name == DEFAULT_UPSTREAM else [f"/{name}/mcp"]
        return [*named, "/mcp"] if name == DEFAULT_UPSTREAM or len(self.proxies) == 1 else named

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Open what requests need; at the end write what is recorded, and close what was opened here."""
        if self.running:
            raise RuntimeError("this Shadowcat app runs already: enter its lifespan once, in one place")
        self.watches = Watches()  # their timer is of this loop
        async with AsyncExitStack() as stack:
            if not self.store.is_open:
                await self._open_store(stack)
            if self._owned is not None:
                stack.push_async_callback(self._owned.aclose)
            self.recorder.start()
            stack.push_async_callback(self.recorder.stop)
            _run_beside(stack, self._keep_alive(), "shadowcat-keep-alive")
            _run_beside(stack, self._comment(), "shadowcat-comments")
            await stack.enter_async_context(self.owners.alive())
            _run_beside(stack, self.owners.read_mail(), "shadowcat-mail")
            _run_beside(stack, self._look_after(), "shadowcat-look-after")
            stack.enter_context(on_signals(self.drain))
            self.running = True
            self.streams.draining = False
            try:
                yield
            finally:
                self.drain()
                self._cut()
                await self.streams.settle(_LAST_WORDS)
                self.running = False

    async def _open_store(self, stack: AsyncExitStack) -> None:
        """Open the store; where it is down, go on and open it as soon as it is back.

        Until then it refuses every call, so that requests that need it are answered 503.

        Raises:
            StoreUnusable: no waiting heals it.
        """
        stack.push_async_callback(self.store.aclose)
        reason = await self._refusal()
        if reason is not None:
            logger.error("the session store is down, and is asked again until it is back: %s", reason)
            _run_beside(stack, self._reopen_store(), "shadowcat-reopen-store")

    async def _refusal(self) -> str | None:
        """Try to open the store; return why it does not open."""
        # Stores bound their calls themselves, and then say why: theirs comes first.
        timeout = self.settings.store_timeout + 1
        try:
            with anyio.fail_after(timeout):
                await self.store.open()
        except StoreUnusable:
            raise
        except StoreUnavailable as exc:
            return str(exc)
        except TimeoutError:
            return f"it did not answer within {timeout:g} s"
        return None

    async def _reopen_store(self) -> None:
        reason: str | None = ""
        while reason is not None:
            await asyncio.sleep(_REOPEN_EVERY)
            try:
                reason = await self._refusal()
            except StoreUnusable as exc:
                if reason != str(exc):
                    logger.error("the session store is back and cannot be used: %s", exc)
                reason = str(exc)
        logger.warning("the session store is back")

    def drain(self) -> None:
        """Stop being ready, end the streams that answer no request, and give the others `shutdown_grace`.

        Asked again, do not wait for them any longer.
        """
        if self.draining:
            self._cut()
            return
        self.streams.drain()
        for watch in self.watches:
            if watch.harmless:
                watch.cut()
        self._grace = asyncio.get_running_loop().call_later(self.settings.shutdown_grace, self._cut)

    def _cut(self) -> None:
        """Leave what is still open. A server would cancel it, and log each as a failure."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self.watches:
            logger.warning("requests that are cut because the server stops: %d", len(self.watches))
        for stream in self.streams.all():
            stream.end()
        for watch in self.watches:
            watch.cut()

    async def _comment(self) -> None:
        """Keep silent streams from being taken for dead by what is between."""
        silence = self.settings.stream_keepalive / 2
        while silence:
            await asyncio.sleep(silence)
            self.streams.keep_alive(silence)

    async def _look_after(self) -> None:
        """See to the streams whose sessions other replicas have ended."""
        while self.store.shared:
            await asyncio.sleep(1)
            with suppress(StoreError):
                await self.streams.look_after()

    async def _keep_alive(self) -> None:
        """Keep the sessions of open streams from expiring under them, and end those that have ended."""
        proxy = next(iter(self.proxies.values()))
        while True:
            await asyncio.sleep(min(_KEEP_ALIVE_EVERY, self.settings.session_ttl / 4))
            for session_id in self.streams.session_ids():
                with suppress(ShadowcatError):
                    at_endpoint = session_id in self.streams.endpoints
                    await proxy.sessions.touch(session_id, at_endpoint=at_endpoint)
            for each in self.proxies.values():
                with suppress(ShadowcatError):
                    await each.sessions.end_again()

    def metrics(self) -> str:
        """Return the counters and gauges as Prometheus text."""
        return self.counters.exposition(
            {"open_streams": len(self.streams), "recorder_waiting_frames": self.recorder.waiting}
        )


def _run_beside(stack: AsyncExitStack, work: Coroutine[None, None, None], name: str) -> None:
    """Run it as a task that ends with the stack."""
    task = asyncio.get_running_loop().create_task(work, name=name)

    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
