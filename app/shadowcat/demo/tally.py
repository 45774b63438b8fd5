"""Who sent what: requests are noted where the client sends them, and where the sample server gets them."""

from __future__ import annotations

import json
from collections import deque
from typing import Final

import anyio
import httpx2
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shadowcat.protocol import SESSION_ID

REQUESTS: Final = "/requests"
"""Where the sample server says what it got: the newest requests, oldest first."""
_KEPT: Final = 1000


def in_words(verb: str, body: bytes) -> str:
    """Return a request's verb, and the method of the message it carries."""
    message = json.loads(body) if body else {}
    return f"{verb} {message.get('method', 'answer') if message else ''}".strip()


class Departures(httpx2.AsyncBaseTransport):
    """The client's connection: notes what the client sends, and the session id it is given."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.session_id = ""
        self._wire = httpx2.AsyncHTTPTransport()
        self._answers = 0
        self._answer = anyio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request."""
        self.requests.append(in_words(request.method, await request.aread()))
        response = await self._wire.handle_async_request(request)
        self.session_id = response.headers.get(SESSION_ID.decode(), self.session_id)
        self._answers += 1
        self._answer.set()
        self._answer = anyio.Event()
        return response

    async def answered(self, count: int) -> None:
        """Return when that many requests have been answered: the SDK sends some of them by the way."""
        while self._answers < count:
            await self._answer.wait()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()


class Arrivals:
    """ASGI middleware around the sample server: notes what it gets, and says so at `/requests`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests: deque[tuple[str, str]] = deque(maxlen=_KEPT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == REQUESTS:
            seen = [{"request": request, "session_id": session_id} for request, session_id in self._requests]
            await JSONResponse(seen)(scope, receive, send)
        else:
            session_id = dict(scope["headers"]).get(SESSION_ID, b"").decode("latin-1")
            await self._app(scope, self._noting(scope["method"], session_id, receive), send)

    def _noting(self, verb: str, session_id: str, receive: Receive) -> Receive:
        if verb != "POST":
            self._requests.append((verb, session_id))
            return receive
        body = bytearray()

        async def noting() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    self._requests.append((in_words(verb, bytes(body)), session_id))
            return message

        return noting
