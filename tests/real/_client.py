"""The Python SDK's client over an HTTP connection that remembers what went over it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import patch

import anyio
import httpx2
from mcp import Client
from mcp.client.session import ClientRequestContext, ElicitationFnT, IncomingMessage
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CallToolResult,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    ResourceUpdatedNotification,
    Root,
    TextContent,
)
from pydantic import FileUrl

from tests.real._process import DEADLINE
from tests.support.plain import plain_http

MODERN = "2026-07-28"

Action = Literal["accept", "decline"]


@dataclass
class Wire:
    """What a client sent and what it was given, below the SDK."""

    client_id: str = field(default_factory=lambda: secrets.token_hex(8))
    sent: list[str] = field(default_factory=list)
    """The verb of each request, in order."""
    answered: list[tuple[str, int, str]] = field(default_factory=list)
    """Verb, status and media type of each response, in order."""
    session_ids: set[str] = field(default_factory=set)
    """Every `Mcp-Session-Id` that a response had."""
    get_answered: anyio.Event = field(default_factory=anyio.Event)

    @property
    def session_id(self) -> str:
        """The one session id of the conversation."""
        (session_id,) = self.session_ids
        return session_id

    def http(self) -> httpx2.AsyncClient:
        return plain_http(
            headers={"x-test-client": self.client_id},
            event_hooks={"request": [self._on_request], "response": [self._on_response]},
        )

    def media_types(self, verb: str) -> set[str]:
        """Return the media types of the answers (status 200) to the verb."""
        return {kind for each, status, kind in self.answered if (each, status) == (verb, 200)}

    async def _on_request(self, request: httpx2.Request) -> None:
        self.sent.append(request.method)

    async def _on_response(self, response: httpx2.Response) -> None:
        verb = response.request.method
        media_type = response.headers.get("content-type", "").partition(";")[0]
        self.answered.append((verb, response.status_code, media_type))
        if "mcp-session-id" in response.headers:
            self.session_ids.add(response.headers["mcp-session-id"])
        if verb == "GET":
            self.get_answered.set()


@asynccontextmanager
async def open_client(
    url: str, revision: str, wire: Wire, *, deadline: float = DEADLINE, **callbacks: Any
) -> AsyncIterator[Client]:
    """Connect at the given protocol revision ("auto": let the SDK find out); give the client when ready.

    Ready means, in a session, that its standalone GET stream is open: what a server sends before is lost.
    """
    mode = revision if revision in ("auto", MODERN) else "legacy"
    with anyio.fail_after(deadline):
        async with wire.http() as http, AsyncExitStack() as stack:
            client = Client(streamable_http_client(url, http_client=http), mode=mode, **callbacks)
            # The SDK offers its newest session revision; there is no argument to offer an older one.
            offered = revision if mode == "legacy" else "2025-11-25"
            with patch("mcp.client.session.LATEST_HANDSHAKE_VERSION", offered):
                await stack.enter_async_context(client)
            if wire.session_ids:
                await wire.get_answered.wait()
            yield client


@asynccontextmanager
async def open_sse_client(
    url: str, wire: Wire, *, deadline: float = DEADLINE, **callbacks: Any
) -> AsyncIterator[Client]:
    """Connect over HTTP+SSE (2024-11-05); give the client when ready."""

    def http(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        return wire.http()

    with anyio.fail_after(deadline):
        transport = sse_client(url, httpx_client_factory=http, on_session_created=wire.session_ids.add)
        async with Client(transport, mode="legacy", **callbacks) as client:
            yield client


class Asked:
    """What the server asked of the client and told it, and the client's answers."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.updates: asyncio.Queue[str] = asyncio.Queue()
        """The URIs of the resources that changed, as they are told."""

    def elicit(self, action: Action) -> ElicitationFnT:
        """Return a callback that answers every elicitation with the action."""

        async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
            self.questions.append(params.message)
            return ElicitResult(action=action, content={"name": "Ada"} if action == "accept" else None)

        return answer

    async def sample(
        self, context: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult:
        """Answer as the client's model."""
        question = params.messages[0].content
        assert isinstance(question, TextContent)
        self.questions.append(question.text)
        return CreateMessageResult(
            role="assistant", content=TextContent(type="text", text="Forty-two."), model="a-model"
        )

    async def roots(self, context: ClientRequestContext) -> ListRootsResult:
        """List the client's one root."""
        self.questions.append("roots")
        return ListRootsResult(roots=[Root(uri=FileUrl("file:///srv/ada"), name="ada")])

    async def notified(self, message: IncomingMessage) -> None:
        """Note resource updates; everything else is not ours."""
        if isinstance(message, ResourceUpdatedNotification):
            self.updates.put_nowait(str(message.params.uri))


def text_of(result: CallToolResult) -> str:
    """The text of a tool's answer, all of it."""
    return "".join(part.text for part in result.content if isinstance(part, TextContent))
