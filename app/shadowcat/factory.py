"""The app factory, and the lifespan that a host enters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shadowcat.auth_endpoints import ProtectedResource, auth_routes
from shadowcat.endpoints import METHODS, Health, MCPEndpoint, problem
from shadowcat.service import Service
from shadowcat.settings import DEFAULT_UPSTREAM, Settings, check_upstream
from shadowcat_stores import SessionStore


def create_app(
    store: SessionStore,
    *,
    upstream: str | Mapping[str, str],
    settings: Settings | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Starlette:
    """Return the proxy as an ASGI application.

    It answers `/mcp` for the single upstream (or the one named `default`), `/NAME/mcp` for named ones, and
    `/healthz`, `/readyz`, `/metrics`. Beside each `mcp`, `sse` is the same, and `messages` takes what clients
    of HTTP+SSE (2024-11-05) send. Its lifespan opens and closes the store, unless the store is open already.

    Args:
        store: where sessions and their tapes are kept. To swap it is to pass another one.
        upstream: the MCP server's URL, or several by name.
        settings: how the proxy behaves; the defaults suit one server on the same machine or network.
        transport: how upstreams are reached, instead of by `settings.transport`. The caller closes it.

    Raises:
        TypeError: the store or the settings are something else.
        ValueError: an upstream is no `http://` or `https://` URL, or its name cannot stand in a path.
    """
    if not isinstance(store, SessionStore):
        raise TypeError(
            f"the store must be an instance of SessionStore, such as MemoryStore(), not {store!r}"
        )
    if not isinstance(settings, Settings | None):
        raise TypeError(f"the settings must be an instance of Settings, such as Settings(), not {settings!r}")
    if not isinstance(upstream, str | Mapping):
        raise TypeError(f"upstream must be a URL, or a mapping of names to URLs, not {upstream!r}")
    named = {DEFAULT_UPSTREAM: upstream} if isinstance(upstream, str) else dict(upstream)
    if not named:
        raise ValueError("no upstream is given: create_app(store, upstream='http://127.0.0.1:3001/mcp')")
    for name, url in named.items():
        check_upstream(name, url)
    service = Service(store, named, settings or Settings(), transport)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.run():
            yield

    app = ProxyApp(
        routes=_routes(service),
        lifespan=lifespan,
        exception_handlers={HTTPException: problem},
    )
    app.state.shadowcat = service
    return app


class ProxyApp(Starlette):
    """A Starlette application whose MCP paths are answered before its own middleware and routing, which cost
    8 % of a request there: their endpoints say themselves what went wrong. The host's middleware counts."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return what every request goes through."""
        stack = super().build_middleware_stack()
        if self.user_middleware:
            return stack
        endpoints: dict[tuple[str, str], ASGIApp] = {
            (method, route.path): route.app
            for route in self.routes
            if isinstance(route, Route) and isinstance(route.endpoint, MCPEndpoint)
            for method in route.methods or ()
        }

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            endpoint = None
            if scope["type"] == "http":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                endpoint = endpoints.get((scope["method"], path))
            await (endpoint or stack)(scope, receive, send)

        return answer


def _routes(service: Service) -> list[Route]:
    health = Health(service)
    routes = [
        Route("/healthz", health.healthz),
        Route("/readyz", health.readyz),
        Route("/metrics", health.metrics),
    ]
    for name, proxy in service.proxies.items():
        resource = ProtectedResource(proxy.upstream, service.settings)
        endpoint = MCPEndpoint(service, proxy, resource)
        messages = MCPEndpoint(service, proxy.http_sse, resource)
        mcp = service.paths(name)
        sse = [path.removesuffix("/mcp") + "/sse" for path in mcp]
        for path in sse:
            at = path.removesuffix("/sse") + "/messages"
            routes.append(Route(path, endpoint, methods=METHODS))
            routes.append(Route(at, messages, methods=("POST", "OPTIONS")))
        # The hot path first: routes are tried in order.
        routes[:0] = [Route(path, endpoint, methods=METHODS) for path in mcp]
        routes += auth_routes(service, resource, [*mcp, *sse])
    return routes


def lifespan_of(proxy: Starlette) -> AbstractAsyncContextManager[None]:
    """Return the lifespan of a proxy that is mounted in another app, for the host to enter.

    A mounted app's lifespan does not run by itself:

        @asynccontextmanager
        async def lifespan(app):
            async with lifespan_of(proxy):
                yield
    """
    service = getattr(proxy.state, "shadowcat", None)
    if not isinstance(service, Service):
        raise TypeError(f"lifespan_of takes what create_app returned, not {proxy!r}")
    return service.run()
