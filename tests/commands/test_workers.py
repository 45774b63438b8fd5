"""Several processes on one socket: as one to clients and to whoever starts and stops them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.commands._command import Command, result_of, started
from tests.commands._open import JSON, Caller, NeverEnds, caller, is_said_to_be_lost
from tests.commands.test_serve import serving
from tests.support.events import Events, message
from tests.support.plain import plain_http
from tests.support.proxying import INITIALIZE, request
from tests.support.redis import redis_server
from tests.support.upstream import Connection, Received, ScriptedUpstream, result

URL = "http://127.0.0.1:9/mcp"
TWO = ("--workers", "2")
GUNICORN = (
    "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:0", "--no-control-socket",
    "-w", "2", "shadowcat.asgi:app",
)  # fmt: skip


@asynccontextmanager
async def under_serve(upstream: ScriptedUpstream) -> AsyncIterator[str]:
    async with serving(*TWO, "--upstream", upstream.url) as (_, base):
        yield base


@asynccontextmanager
async def under_serve_with_redis(upstream: ScriptedUpstream) -> AsyncIterator[str]:
    with redis_server() as redis:
        async with serving(*TWO, "--upstream", upstream.url, "--store", redis.url) as (_, base):
            yield base


@asynccontextmanager
async def under_gunicorn(upstream: ScriptedUpstream, *options: str) -> AsyncIterator[str]:
    async with started(*GUNICORN, *options, env={"SHADOWCAT_UPSTREAM": upstream.url}) as command:
        base = (await command.says(r"Listening at: (http://127\.0\.0\.1:\d+)"))[1]
        await command.says(r"(?s:Application startup complete.*){2}")
        yield base


@asynccontextmanager
async def under_gunicorn_forked_late(upstream: ScriptedUpstream) -> AsyncIterator[str]:
    async with under_gunicorn(upstream, "--preload") as base:
        yield base


@asynccontextmanager
async def serving_a_caller(upstream: ScriptedUpstream, grace: float) -> AsyncIterator[tuple[Command, Caller]]:
    """Run two workers in front of an upstream whose answers to the given client never end."""
    options = (*TWO, "--upstream", upstream.url)
    async with (
        serving(*options, env={"SHADOWCAT_SHUTDOWN_GRACE": str(grace)}) as (command, base),
        caller(base + "/mcp", upstream) as client,
    ):
        yield command, client


class Connected:
    """A client on one connection, and so at one worker."""

    def __init__(self, http: httpx2.AsyncClient, base: str) -> None:
        self.http = http
        self.base = base

    async def counted(self) -> int:
        """Return how many requests its worker has counted."""
        text = (await self.http.get(self.base + "/metrics")).text
        found = re.search(r"^shadowcat_client_requests_total (\d+)$", text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    async def begin(self) -> dict[str, str]:
        """Begin a session; return the headers of what belongs to it."""
        response = await self.http.post(self.base + "/mcp", json=INITIALIZE, headers=JSON)
        response.raise_for_status()
        return {**JSON, "Mcp-Session-Id": response.headers["mcp-session-id"]}

    async def ask(self, session: Mapping[str, str], request_id: int) -> httpx2.Response:
        """Send a request and await its answer."""
        asked = request("tools/list", request_id)
        return await self.http.post(self.base + "/mcp", json=asked, headers=session)


@asynccontextmanager
async def one_at_each(base: str) -> AsyncIterator[tuple[Connected, Connected]]:
    """Give two clients at two workers: what the one asks is not counted by the other's."""
    with anyio.fail_after(30):
        async with plain_http() as http:
            one = Connected(http, base)
            session = await one.begin()
            while True:
                async with plain_http() as http:
                    other = Connected(http, base)
                    before = await other.counted()
                    await one.ask(session, 1)
                    if await other.counted() == before:
                        yield one, other
                        return


async def workers_of(command: Command) -> set[int]:
    """Return the processes that it has started."""
    listed = await anyio.run_process(["ps", "-A", "-o", "pid=,ppid="])
    pairs = (line.split() for line in listed.stdout.decode().splitlines())
    return {int(pid) for pid, parent in pairs if int(parent) == command.pid}


@pytest.mark.parametrize(
    "server", [under_serve, under_serve_with_redis, under_gunicorn, under_gunicorn_forked_late]
)
async def test_a_session_is_served_by_whichever_worker(server, upstream: ScriptedUpstream) -> None:  # type: ignore[no-untyped-def]
    async with server(upstream) as base, one_at_each(base) as (one, other):
        for beginner, follower in ((one, other), (other, one)):
            session = await beginner.begin()
            for request_id, client in enumerate((follower, beginner, follower)):
                answer = await client.ask(session, request_id)
                assert (answer.status_code, answer.json()["id"]) == (200, request_id)
    sent = [each.message["id"] for each in upstream.forwarded]
    assert sent[-6:] == [0, 1, 2] * 2


@pytest.mark.parametrize("server", [under_serve, under_serve_with_redis])
async def test_a_stream_goes_on_at_the_other_worker(server, upstream: ScriptedUpstream) -> None:  # type: ignore[no-untyped-def]
    client_left = anyio.Event()

    async def answer(received: Received, connection: Connection) -> None:
        if received.rpc_method == "tools/list":
            await connection.respond(result(received.message["id"], {}), ("Content-Type", "application/json"))
            return
        await connection.start_stream()
        note = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}).encode()
        await connection.chunk(b"data: " + note + b"\n\n")
        await client_left.wait()
        await connection.chunk(b"data: " + result(received.message["id"], {}) + b"\n\n")
        await connection.end_stream()

    upstream.script = answer
    async with server(upstream) as base, one_at_each(base) as (one, other):
        session = await one.begin()
        asked = request("tools/call", "slow")
        async with one.http.stream("POST", base + "/mcp", json=asked, headers=session) as response:
            seen = await Events(response).next()
            assert seen is not None
            assert seen.id
        headers = {**session, "Accept": "text/event-stream", "Last-Event-ID": seen.id}
        async with other.http.stream("GET", base + "/mcp", headers=headers) as response:
            events = Events(response)
            client_left.set()
            assert message(await events.next())["id"] == "slow"
    assert [each.rpc_method for each in upstream.received].count("tools/call") == 1


async def test_it_says_how_many_there_are_once_when_all_are_ready() -> None:
    async with serving(*TWO, "--upstream", URL) as (command, base):
        assert command.output.splitlines() == [
            f"Shadowcat 0.1.0 serves {base}/mcp -> {URL}",
            "Store sqlite:///shadowcat.db, tape window, 2 workers. Ctrl-C stops.",
        ]
        assert len(await workers_of(command)) == 2


async def test_a_worker_that_is_killed_is_replaced_and_its_sessions_live_on(
    upstream: ScriptedUpstream,
) -> None:
    async with serving(*TWO, "--upstream", upstream.url) as (command, base):
        async with one_at_each(base) as (one, other):
            sessions = [await one.begin(), await other.begin()]
        before = await workers_of(command)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        await command.says(f"worker {killed} ended with signal SIGKILL: another one is started")
        successor = int((await command.says(r"worker (\d+) serves"))[1])
        assert await workers_of(command) == before - {killed} | {successor}
        async with one_at_each(base) as (one, other):
            for client in (one, other):
                for session in sessions:
                    assert (await client.ask(session, 5)).status_code == 200
        command.send(signal.SIGTERM)
        assert await command.ends() == 0
    assert "Traceback" not in command.output


async def test_a_successor_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    options = (*TWO, "--upstream", URL, "--store", f"sqlite:///{place}/sessions.db")
    async with serving(*options) as (command, base):
        shutil.rmtree(place)
        os.kill(min(await workers_of(command)), signal.SIGKILL)
        await command.says(r"worker \d+ ended with exit code 3: another one is started")
        async with plain_http() as http:
            assert (await http.get(base + "/healthz")).status_code == 200  # by the one that is left
        place.mkdir()
        await command.says(r"worker \d+ serves")
        command.send(signal.SIGTERM)
        assert await command.ends() == 0


# -- how they stop: the output ends when no process is left that could write to it ----------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_all_of_them(upstream: ScriptedUpstream, number: signal.Signals) -> None:
    async with (
        serving_a_caller(upstream, grace=600) as (command, client),
        client.open_stream("GET") as chunks,
    ):
        workers = await workers_of(command)
        command.send(number)
        assert [chunk async for chunk in chunks] == [b"retry: 1000\n\n"]
        assert await command.ends() == 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert "Traceback" not in command.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_all_of_them_is_one(upstream: ScriptedUpstream, number: signal.Signals) -> None:
    """As a terminal sends, and systemd."""
    async with (
        serving_a_caller(upstream, grace=600) as (command, client),
        client.open_stream("POST") as chunks,
    ):
        command.send(number, group=True)
        await command.says("Stopping. Open requests: 1, for 600 s")
        assert "cut because" not in command.output  # as it would be at once by a second one
        command.send(number, group=True)
        assert is_said_to_be_lost([chunk async for chunk in chunks])
        assert await command.ends() == 0
    assert "Traceback" not in command.output


async def test_workers_end_with_the_first_process_all_at_once(upstream: ScriptedUpstream) -> None:
    options = (*TWO, "--upstream", upstream.url)
    async with (
        serving(*options, env={"SHADOWCAT_SHUTDOWN_GRACE": "0.5"}) as (command, base),
        one_at_each(base) as clients,
        AsyncExitStack() as streams,
    ):
        upstream.script = NeverEnds()
        for client in clients:
            session = await client.begin()
            stream = client.http.stream("POST", base + "/mcp", json=request("tools/call"), headers=session)
            await anext((await streams.enter_async_context(stream)).aiter_raw())
        command.send(signal.SIGKILL)
        assert await command.ends() == -signal.SIGKILL
    assert re.findall("Stopping|cut because", command.output) == ["Stopping"] * 2 + ["cut because"] * 2


async def test_workers_do_not_hurry_where_the_first_process_ends_before_them(
    upstream: ScriptedUpstream,
) -> None:
    steps = [anyio.Event(), anyio.Event()]

    async def answer(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b": open\n\n")
        for step, data in zip(steps, (b"{}", result(received.message["id"], {})), strict=True):
            await step.wait()
            await connection.chunk(b"data: " + data + b"\n\n")
        await connection.end_stream()

    async with serving_a_caller(upstream, grace=600) as (command, client):
        upstream.script = answer
        async with client.open_stream("POST") as chunks:
            command.send(signal.SIGTERM)
            await command.says("Stopping. Open requests: 1")
            command.send(signal.SIGKILL)
            for step in steps:  # one goes through the worker after it has heard of that end
                step.set()
                while b"data: {" not in await anext(chunks):
                    pass
        assert await command.ends() == -signal.SIGKILL
    assert "cut because" not in command.output


# -- what cannot be -------------------------------------------------------------------------------------


async def test_a_store_that_is_not_shared_is_refused_with_the_remedy() -> None:
    code, output = await result_of("shadowcat", "serve", *TWO, "--upstream", URL, "--store", "memory://")
    assert code == 2
    assert "choose --store sqlite:///shadowcat.db or --store redis://HOST/0" in output


async def test_a_store_that_does_not_open_ends_the_start() -> None:
    options = (*TWO, "--upstream", URL, "--port", "0", "--store", "sqlite:////no/such/place.db")
    code, output = await result_of("shadowcat", "serve", *options)
    assert code == 3
    assert output.count("The session store: /no/such/place.db cannot be made") == 1
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        (("--workers", "0"), {}, "0 is not in the range x>=1"),
        ((), {"SHADOWCAT_WORKERS": "0"}, "workers must be 1 or more, not 0"),
    ],
)
async def test_none_is_too_few(options: tuple[str, ...], env: dict[str, str], said: str) -> None:
    code, output = await result_of("shadowcat", "serve", "--upstream", URL, *options, env=env)
    assert code == 2
    assert said in output
