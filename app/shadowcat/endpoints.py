"""What answers on each path."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final, Protocol

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from shadowcat.auth_endpoints import ProtectedResource
from shadowcat.errors import (
    AmbiguousDelivery,
    NotStarted,
    ShadowcatError,
    Stopping,
    UpstreamBroke,
    UpstreamError,
)
from shadowcat.inbound import ClientRequest
from shadowcat.live_responses import LiveResponse
from shadowcat.protocol import CHALLENGES
from shadowcat.responses import RelayResponse, error_response, problem_response
from shadowcat.service import Service
from shadowcat.upstream import Media, Upstream
from shadowcat.watch import ClientWatch
from shadowcat.wellknown import AUTHORIZATION_SERVER
from shadowcat_stores import StoreError

logger = logging.getLogger("shadowcat")

_PASSED_KEPT: Final = 100
"""How many different sets of headers are known to be in order: clients have few, and an attacker many."""

_LAST_WORDS: Final = 1.0
"""Seconds that a slow client has to take how a stream ended."""

METHODS = ("GET", "POST", "DELETE", "OPTIONS")

_STOPPED = AmbiguousDelivery(
    "The proxy was stopped before the upstream answered. It may have processed the request: check before you "
    "send it again."
)


class Forwards(Protocol):
    """What sends a client's request on."""

    @property
    def upstream(self) -> Upstream:
        """Where to."""

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> Response:
        """Return the response that relays the answer."""


class MCPEndpoint:
    """An MCP path of one upstream. An ASGI app, since a function endpoint costs more and sees less."""

    def __init__(self, service: Service, proxy: Forwards, resource: ProtectedResource) -> None:
        self._service = service
        self._proxy = proxy
        self._resource = resource
        self._passed: set[tuple[object, ...]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; return without an answer where the client has left."""
        request = ClientRequest(scope)
        settings = self._service.settings
        try:
            if not self._service.running:
                raise NotStarted
            if request.method == "GET" and self._service.draining:
                raise Stopping
            self._check(request)
            await request.read_body(receive, settings.max_body_bytes)
        except ClientDisconnect:
            return
        except ShadowcatError as error:
            await _tell(error, request)(scope, receive, send)
            return
        response: Response | None = None
        is_get = request.method == "GET"
        with ClientWatch(receive, self._service.watches, harmless=is_get) as watch:
            try:
                response = await self._proxy.forward(request, watch)
                if response.status_code in CHALLENGES:
                    response.raw_headers = self._resource.challenge(scope, request, response.raw_headers)
            except ShadowcatError as error:
                response = _tell(error, request, self._proxy.upstream.shown)
            _hand_over(watch, response)
            watch.harmless = is_get
            await response(scope, receive, send)
            watch.stop()
        if not watch.was_cut:
            return
        if response is None:
            await _tell(Stopping() if watch.harmless else _STOPPED, request)(scope, receive, send)
            return
        if is_get and _is_stream(response):
            with anyio.move_on_after(_LAST_WORDS):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
        # Let out, so that what is cut does not look complete, whatever stands around this app.
        raise UpstreamBroke("The response was cut because the server stops.")

    def _check(self, request: ClientRequest) -> None:
        """Refuse what must not be forwarded. What has passed once passes again: the look takes 4 µs."""
        looked_at = request.looked_at
        if looked_at not in self._passed:
            request.check(self._service.settings)
            if len(self._passed) == _PASSED_KEPT:
                self._passed.clear()
            self._passed.add(looked_at)
        request.check_length(self._service.settings)


def _hand_over(watch: ClientWatch, response: Response) -> None:
    """Say what is to become of the response when its client leaves."""
    if isinstance(response, LiveResponse):
        watch.hand_to(response)
    elif not (isinstance(response, RelayResponse) and response.is_recorded_whole):
        watch.lose_patience()


def _is_stream(response: Response) -> bool:
    return Media.of(dict(response.raw_headers).get(b"content-type")) is Media.SSE


def _tell(error: ShadowcatError, request: ClientRequest, upstream: str = "") -> Response:
    where = f" [{upstream}]" if isinstance(error, UpstreamError) else ""
    logger.log(error.level, "%s %s: %s%s", request.method, error.status, error, where)
    return error_response(error, request.id)


class Health:
    """`/healthz`, `/readyz` and `/metrics`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def healthz(self, request: Request) -> Response:
        """Answer 200: the process is alive."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Answer 200 when requests can be served, 503 with the reason when not."""
        if not self._service.running:
            return problem_response(503, str(NotStarted()))
        if self._service.draining:
            return problem_response(503, "The server is stopping.")
        # Stores bound their calls themselves, and then say why: theirs comes first.
        timeout = self._service.settings.store_timeout + 1
        try:
            with anyio.fail_after(timeout):
                await self._service.store.ping()
        except StoreError as exc:
            return problem_response(503, f"The session store does not answer: {exc}", retry_after=2)
        except TimeoutError:
            detail = f"The session store did not answer within {timeout:g} s."
            return problem_response(503, detail, retry_after=2)
        return PlainTextResponse("ready\n")

    async def metrics(self, request: Request) -> Response:
        """Answer with the counters."""
        return PlainTextResponse(self._service.metrics(), media_type="text/plain; version=0.0.4")


async def problem(request: Request, exc: Exception) -> Response:
    """Answer what no route takes."""
    if not isinstance(exc, HTTPException):
        raise exc
    detail = exc.detail
    if exc.status_code == HTTPStatus.NOT_FOUND:
        service: Service = request.app.state.shadowcat
        served = ", ".join(path for name in service.proxies for path in service.paths(name))
        detail = f"Nothing is served at this path. MCP is at {served}."
        if request.url.path.removeprefix(request.scope.get("root_path", "")) in AUTHORIZATION_SERVER:
            detail += " Where the MCP server is its own authorization server, set auth_endpoints."
    response = problem_response(exc.status_code, detail)
    response.headers.update(exc.headers or {})
    return response
