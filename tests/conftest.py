"""What every test can ask for."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest

from tests.support.proxying import Proxied, proxied
from tests.support.upstream import ScriptedUpstream, scripted_upstream

# Whoever is started in the background by a shell ignores Ctrl-C, and so would the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, which is what uvicorn and the transports run on."""
    return "asyncio"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream on a real socket."""
    async with scripted_upstream() as scripted:
        yield scripted


@pytest.fixture
async def proxy(request: pytest.FixtureRequest, upstream: ScriptedUpstream) -> AsyncIterator[Proxied]:
    """The app with its defaults, or the settings it is parametrized with, behind a real uvicorn, in front of
    the scripted upstream."""
    async with proxied(upstream.url, **getattr(request, "param", {})) as running:
        yield running
