"""`shadowcat.asgi:app` under the servers that operators run it with, set by environment variables."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.commands._command import Command, result_of, started
from tests.commands._open import Caller, caller, is_said_to_be_lost
from tests.support.upstream import ScriptedUpstream

UVICORN = ("uvicorn", "shadowcat.asgi:app", "--port", "0")
GUNICORN = (
    "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:0", "--no-control-socket",
    "shadowcat.asgi:app",
)  # fmt: skip
SERVERS = [pytest.param(UVICORN, id="uvicorn"), pytest.param(GUNICORN, id="gunicorn")]


@asynccontextmanager
async def serving(
    server: tuple[str, ...], upstream: ScriptedUpstream, **settings: str
) -> AsyncIterator[tuple[Command, Caller]]:
    """Run the app under a server, set by the environment; give it, and a client whose answers never end."""
    env = {"SHADOWCAT_UPSTREAM": upstream.url, **settings}
    async with started(*server, env=env) as command:
        base = (await command.says(r"(?:running on|Listening at:) (http://127\.0\.0\.1:\d+)"))[1]
        await command.says("Application startup complete")
        async with caller(base + "/mcp", upstream) as client:
            yield command, client


@pytest.mark.parametrize("server", SERVERS)
async def test_it_serves_what_the_environment_says(
    server: tuple[str, ...], upstream: ScriptedUpstream
) -> None:
    async with serving(server, upstream, SHADOWCAT_MAX_BODY_BYTES="1000") as (command, client):
        assert client.session
        assert (await client.ask("x" * 1000)).status_code == 413
        command.send(signal.SIGTERM)
        await command.ends()
    assert [each.rpc_method for each in upstream.received] == ["initialize"]
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("server", "number", "code"),
    [
        pytest.param(UVICORN, signal.SIGINT, 0, id="uvicorn-SIGINT"),
        pytest.param(UVICORN, signal.SIGTERM, -signal.SIGTERM, id="uvicorn-SIGTERM"),
        pytest.param(GUNICORN, signal.SIGINT, 0, id="gunicorn-SIGINT"),
        pytest.param(GUNICORN, signal.SIGTERM, 0, id="gunicorn-SIGTERM"),
    ],
)
async def test_a_signal_ends_the_get_streams_at_once(
    server: tuple[str, ...], upstream: ScriptedUpstream, number: signal.Signals, code: int
) -> None:
    async with (
        serving(server, upstream, SHADOWCAT_SHUTDOWN_GRACE="600") as (command, client),
        client.open_stream("GET") as chunks,
    ):
        # A terminal's Ctrl-C goes to all processes; a service manager's SIGTERM to the first.
        command.send(number, group=number == signal.SIGINT)
        assert [chunk async for chunk in chunks] == [b"retry: 1000\n\n"]
        assert await command.ends() == code
    assert "Traceback" not in command.output


@pytest.mark.parametrize("server", SERVERS)
async def test_an_answer_gets_its_grace_and_is_cut_after_it(
    server: tuple[str, ...], upstream: ScriptedUpstream
) -> None:
    """Also where the server itself would wait for ever, as uvicorn does unless told otherwise."""
    async with (
        serving(server, upstream, SHADOWCAT_SHUTDOWN_GRACE="0.2") as (command, client),
        client.open_stream("POST") as chunks,
    ):
        command.send(signal.SIGTERM)
        assert is_said_to_be_lost([chunk async for chunk in chunks])
        assert await command.ends() in (0, -signal.SIGTERM)
    assert "cut because the server stops: 1" in command.output


HOST = """
import os
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.routing import Mount
from shadowcat import create_app, lifespan_of
from shadowcat_stores import MemoryStore

proxy = create_app(MemoryStore(), upstream=os.environ["HOST_UPSTREAM"])

@asynccontextmanager
async def lifespan(app):
    async with lifespan_of(proxy):
        yield

app = Starlette(routes=[Mount("/tools", proxy)], lifespan=lifespan)
"""


async def test_a_host_that_mounts_it_can_stop_with_streams_open(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    (tmp_path / "host.py").write_text(HOST)
    server = ("uvicorn", "host:app", "--app-dir", str(tmp_path), "--port", "0")
    async with started(*server, env={"HOST_UPSTREAM": upstream.url}) as command:
        base = (await command.says(r"running on (http://127\.0\.0\.1:\d+)"))[1]
        async with caller(base + "/tools/mcp", upstream) as client, client.open_stream("GET") as chunks:
            command.send(signal.SIGINT)
            assert [chunk async for chunk in chunks] == [b"retry: 1000\n\n"]
            assert await command.ends() == 0
    assert "Traceback" not in command.output


@pytest.mark.parametrize("server", SERVERS)
async def test_a_missing_upstream_is_one_line_and_no_endless_restarting(server: tuple[str, ...]) -> None:
    code, output = await result_of(*server)
    assert code == 3
    assert output.count("Error: no upstream is given: name the MCP server") == 1
    assert "Traceback" not in output
