"""The demo's calls through the proxy, told line by line as they happen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import click
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ElicitResult, Implementation, TextContent

from shadowcat import __version__
from shadowcat.demo.tally import REQUESTS, Departures
from shadowcat.service import Service
from shadowcat_stores import Frame

DEADLINE = 30.0
"""Seconds that the whole tour may take; it takes about two."""


class Tour:
    """One client's session with the sample server, through the proxy."""

    def __init__(self, url: str, service: Service, server: str) -> None:
        self._url = url
        self._service = service
        self._server = httpx2.AsyncClient(base_url=server, trust_env=False)
        self._sent = Departures()
        self._one_each = True

    async def run(self) -> bool:
        """Make the calls; return whether each request of the client's was one request at the server.

        Raises:
            TimeoutError: an answer did not come.
        """
        with anyio.fail_after(DEADLINE):
            async with self._server, self._http() as http, AsyncExitStack() as session:
                async with self._part("initialize"):
                    client = await session.enter_async_context(self._client(http))
                    await self._sent.answered(3)
                    _say(f"session id at the client  {self._sent.session_id}")
                    _say(f"session id at the server  {(await self._arrived())[-1]['session_id']}")
                await self._calls(client)
                await self._show_tape()
                async with self._part("The client leaves"):
                    await session.aclose()
                    gone = await self._service.store.get_session(self._sent.session_id) is None
                    _say(f"the store has the session {'no more' if gone else 'still'}")
                self._show_total(len(await self._arrived()))
        return self._one_each

    async def _arrived(self) -> list[dict[str, str]]:
        """Ask the sample server, past the proxy, what it got so far."""
        arrived: list[dict[str, str]] = (await self._server.get(REQUESTS)).raise_for_status().json()
        return arrived

    def _http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=self._sent, timeout=None)  # the tour has its deadline

    def _client(self, http: httpx2.AsyncClient) -> Client:
        return Client(
            streamable_http_client(self._url, http_client=http),
            mode="legacy",  # the revisions with sessions
            client_info=Implementation(name="shadowcat-demo", version=__version__),
            elicitation_callback=_answer,
        )

    async def _calls(self, client: Client) -> None:
        async with self._part("tools/list"):
            tools = (await client.list_tools()).tools
            _say(f"result: {', '.join(tool.name for tool in tools)}")
        async with self._part('echo(text="hello")'):
            _say_result(await client.call_tool("echo", {"text": "hello"}))
        async with self._part("slow(steps=3)"):
            begin = time.perf_counter()

            async def on_progress(progress: float, total: float | None, message: str | None) -> None:
                _say(f"+{time.perf_counter() - begin:.2f} s  progress: {message}")

            result = await client.call_tool("slow", {"steps": 3}, progress_callback=on_progress)
            _say_result(result, f"+{time.perf_counter() - begin:.2f} s  ")
        async with self._part("greet()"):
            _say_result(await client.call_tool("greet"))

    @asynccontextmanager
    async def _part(self, title: str) -> AsyncIterator[None]:
        """Tell what happens inside, and how many requests it took on either side of the proxy."""
        before, arrived_before = len(self._sent.requests), len(await self._arrived())
        click.echo(f"\n{title}")
        yield
        sent = self._sent.requests[before:]
        arrived = [each["request"] for each in (await self._arrived())[arrived_before:]]
        if Counter(sent) == Counter(arrived):
            _say(f"requests: {len(sent)} sent, {len(arrived)} arrived ({', '.join(sent)})")
        else:
            self._one_each = False
            _say(f"requests: {len(sent)} sent ({', '.join(sent)})")
            _say(f"     but: {len(arrived)} arrived ({', '.join(arrived)})")

    async def _show_tape(self) -> None:
        await self._service.recorder.flush()
        frames = await self._service.store.get_frames(self._sent.session_id)
        click.echo(f"\nThe session's tape, as the store has it: {len(frames)} frames")
        for frame in frames:
            _say(_frame_line(frame))

    def _show_total(self, arrived: int) -> None:
        counters = self._service.counters
        forwarded = counters.upstream_requests["forward"]
        click.echo(f"\nIn all: {len(self._sent.requests)} requests sent, {arrived} arrived.")
        click.echo(
            f"The proxy counted {counters.client_requests} from the client and {forwarded} to the server."
        )
        if not self._one_each:
            click.echo("Not one upstream request for each client request: this is a bug of Shadowcat's.")


async def _answer(context: Any, params: Any) -> ElicitResult:
    _say(f'the server asks: "{params.message}"  the client answers: Ada')
    return ElicitResult(action="accept", content={"name": "Ada"})


def _frame_line(frame: Frame) -> str:
    envelope = frame.envelope
    sender = "client ->" if frame.direction == "client" else "<- server"
    number = "" if envelope.id is None else f"id {envelope.id}"
    what = f"{envelope.kind} {envelope.method or ''}"
    return f"{frame.seq:>3}  {sender}  {what:<40} {number:<8} {len(envelope.raw):>5} bytes"


def _say_result(result: CallToolResult, prefix: str = "") -> None:
    text = "".join(part.text for part in result.content if isinstance(part, TextContent))
    _say(f'{prefix}result: "{text}"')


def _say(line: str) -> None:
    click.echo(f"  {line}")
