"""What clients look for beside the MCP path of a server that wants a token: forwarded to its origin.

These exact paths and no others. The proxy is no party of OAuth: it mints, checks and keeps no token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shadowcat.counters import Reason
from shadowcat.errors import AmbiguousDelivery, NotStarted, ShadowcatError, UpstreamBroke
from shadowcat.headers import Headers
from shadowcat.inbound import ClientRequest
from shadowcat.outbound import prepare_request, response_headers
from shadowcat.responses import RelayResponse, problem_response
from shadowcat.service import Service
from shadowcat.settings import Settings
from shadowcat.upstream import Upstream, UpstreamResponse
from shadowcat.watch import ClientWatch
from shadowcat.wellknown import AUTHORIZATION_SERVER, PROTECTED_RESOURCE, Addresses, metadata_path

logger = logging.getLogger("shadowcat")

_DOCUMENT: Final = ("GET", "OPTIONS")
_ANY: Final = ("GET", "POST", "OPTIONS")
_LONGEST: Final = 256 * 1024
"""Bytes of a document that is read: a longer one is none, and passes as it is."""
_STOPPED: Final = AmbiguousDelivery(
    "The proxy was stopped before the MCP server answered. It may have processed the request."
)
_HOST: Final = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?", re.ASCII)
_ROOT: Final = "/mcp"
"""The MCP path whose server the paths without a name are of."""


class ProtectedResource:
    """An upstream, as what tokens are for, and where it says so."""

    def __init__(self, upstream: Upstream, settings: Settings) -> None:
        self.upstream = upstream
        self.settings = settings
        self._target: str | None = None
        """Where the metadata is at the upstream, as its last challenge said."""

    def addresses(self, scope: Scope, request: ClientRequest, path: str) -> Addresses:
        """Return where the client finds the upstream.

        Args:
            scope: the request's.
            request: the request.
            path: of the MCP endpoint, below where the proxy is mounted.
        """
        base = self.settings.public_url.rstrip("/")
        if not base:
            host = (request.header(b"host") or b"").decode("latin-1")
            base = f"{request.scheme}://{host if _HOST.fullmatch(host) else request.server}"
            base += scope.get("root_path", "").rstrip("/")
        return Addresses(base, path, self.upstream.url, endpoints(self.settings))

    def challenge(self, scope: Scope, request: ClientRequest, headers: Headers) -> Headers:
        """Return the headers of a 401 or 403 with the metadata where the client can have it."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.endswith("/messages"):  # what the client dialled is where its stream is
            path = path.removesuffix("/messages") + "/sse"
        addresses = self.addresses(scope, request, path)
        self._target = addresses.metadata_target(headers) or self._target
        return addresses.challenge(headers) if self.settings.auth_resource == "proxy" else headers

    async def metadata(self, request: ClientRequest, at: str) -> UpstreamResponse:
        """Ask the upstream for its metadata, and return what it answers.

        It is where the last challenge said, or beside the upstream's URL; or beside the proxy's, where the
        upstream knows itself by that address.

        Args:
            request: the client's.
            at: where it asked, below where the proxy is mounted.

        Raises:
            UpstreamError: the upstream cannot be asked.
        """
        own = metadata_path(urlsplit(self.upstream.url).path)
        targets = [self._target or own, own, at]
        if at == PROTECTED_RESOURCE:
            targets.reverse()
        first, *others = dict.fromkeys(targets)
        response = await self.ask(request, first)
        for target in others:
            if response.status != HTTPStatus.NOT_FOUND:
                break
            await response.aclose()
            response = await self.ask(request, target, "recover")
        return response

    async def ask(self, request: ClientRequest, target: str, reason: Reason = "forward") -> UpstreamResponse:
        """Send the request to this path at the upstream's origin.

        Raises:
            UpstreamError: the upstream cannot be asked.
        """
        outbound = replace(prepare_request(request, None, self.upstream), reason=reason)
        # What is a document is read here.
        outbound.headers = [pair for pair in outbound.headers if pair[0] != b"accept-encoding"]
        return await self.upstream.beside(target).open(outbound)


class AuthEndpoint:
    """One of the paths. An ASGI app, as the MCP paths are."""

    def __init__(self, service: Service, resource: ProtectedResource, path: str, at: str) -> None:
        """Begin.

        Args:
            service: what is shared.
            resource: whose path it is.
            path: of the MCP endpoint that it belongs to.
            at: the path.
        """
        self._service = service
        self._resource = resource
        self._path = path
        self._at = at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; return without an answer where the client has left."""
        request = ClientRequest(scope)
        settings = self._service.settings
        try:
            if not self._service.running:
                raise NotStarted
            request.check_sender(settings)
            await request.read_body(receive, settings.max_body_bytes)
        except ClientDisconnect:
            return
        except ShadowcatError as error:
            await self._tell(error, request)(scope, receive, send)
            return
        response: Response | None = None
        with ClientWatch(receive, self._service.watches) as watch:
            try:
                response = await self._answer(scope, request)
            except ShadowcatError as error:
                response = self._tell(error, request)
            await response(scope, receive, send)
            watch.stop()
        if watch.was_cut and response is None:
            await self._tell(_STOPPED, request)(scope, receive, send)
        elif watch.was_cut:
            raise UpstreamBroke("The response was cut because the server stops.")

    def _tell(self, error: ShadowcatError, request: ClientRequest) -> Response:
        logger.log(error.level, "%s %s: %s %s", request.method, self._at, error.status, error)
        return problem_response(error.status, str(error), error.retry_after)

    async def _answer(self, scope: Scope, request: ClientRequest) -> Response:
        self._service.counters.client_requests += 1
        resource = self._resource
        is_metadata = self._at.startswith(PROTECTED_RESOURCE)
        came = await (resource.metadata if is_metadata else resource.ask)(request, self._at)
        headers = response_headers(came.headers, None, self._service.settings)
        if self._service.settings.auth_resource == "upstream":
            return RelayResponse(came.status, headers, aiter(came), came.aclose)
        addresses = resource.addresses(scope, request, self._path)
        if not self._at.startswith("/.well-known/"):
            return RelayResponse(came.status, addresses.of_redirect(headers), aiter(came), came.aclose)
        try:
            body = await came.peek(_LONGEST)
        except BaseException:
            await came.aclose()
            raise
        if len(body) >= _LONGEST or came.status != HTTPStatus.OK or came.content_encoding:
            return RelayResponse(came.status, headers, aiter(came), came.aclose)
        return self._document(addresses, headers, body)

    def _document(self, addresses: Addresses, headers: Headers, body: bytes) -> Response:
        if self._at.startswith(PROTECTED_RESOURCE):
            is_server = self._service.settings.auth_endpoints
            body = addresses.of_resource(body, is_authorization_server=is_server)
        else:
            body = addresses.of_authorization_server(body)
        response = Response(body)
        length = (b"content-length", b"%d" % len(body))
        response.raw_headers = [*(pair for pair in headers if pair[0] != b"content-length"), length]
        return response


def auth_routes(service: Service, resource: ProtectedResource, paths: Sequence[str]) -> list[Route]:
    """Return the routes that belong to an upstream's MCP paths."""
    routes = [
        Route(at, AuthEndpoint(service, resource, path, at), methods=_DOCUMENT)
        for path in paths
        for at in (metadata_path(path), *((PROTECTED_RESOURCE,) if path == _ROOT else ()))
    ]
    if _ROOT in paths:
        for at, methods in endpoints(service.settings).items():
            routes.append(Route(at, AuthEndpoint(service, resource, _ROOT, at), methods=methods))
    return routes


def endpoints(settings: Settings) -> Mapping[str, Sequence[str]]:
    """Return the paths at the origin of a server that is its own authorization server, with their methods."""
    known = AUTHORIZATION_SERVER if settings.auth_endpoints else {}
    return {**dict.fromkeys(settings.auth_paths, _ANY), **known}
