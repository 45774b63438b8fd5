"""The contract of a transport is run on the stock one and on ours, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from shadowcat import Settings
from shadowcat.transports import http_transport
from tests.transports.callers import Caller


@pytest.fixture(params=["http1", "http1 on uvloop", "httpx2"])
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(variant: str) -> Any:
    return "asyncio", {"use_uvloop": variant.endswith("uvloop")}


@pytest.fixture
def is_ours(variant: str) -> bool:
    return variant != "httpx2"


@pytest.fixture
def calling(variant: str) -> Callable[..., Any]:
    """Make a caller of one URL by a transport with the settings given."""

    @asynccontextmanager
    async def calling(url: str, transport: Any = None, **settings: Any) -> AsyncIterator[Caller]:
        kind: Any = variant.partition(" ")[0]
        assert type(asyncio.get_running_loop()).__module__.startswith(
            variant.partition("on ")[2] or "asyncio"
        )
        transport = transport or http_transport(Settings(transport=kind, **settings))
        assert isinstance(transport, httpx2.AsyncHTTPTransport) == (kind == "httpx2")
        try:
            yield Caller(transport, url)
        finally:
            await transport.aclose()

    return calling
