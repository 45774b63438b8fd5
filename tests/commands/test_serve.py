"""`shadowcat serve`: what it says, what it refuses, and how it stops."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.commands._command import Command, result_of, started
from tests.commands._open import Caller, caller, is_said_to_be_lost
from tests.support.events import Events, message
from tests.support.http_sse import SSEServer
from tests.support.plain import plain_http
from tests.support.proxying import request
from tests.support.upstream import Connection, Received, ScriptedUpstream

URL = "http://127.0.0.1:9/mcp"


@asynccontextmanager
async def serving(*options: str, env: Mapping[str, str] | None = None) -> AsyncIterator[tuple[Command, str]]:
    """Run `shadowcat serve` on a free port; give it and the address it says."""
    async with started("shadowcat", "serve", "--port", "0", *options, env=env) as command:
        yield command, (await command.says(r"(http://\S+:\d+)\S* -> [^\n]*\n(?s:.*)Ctrl-C stops"))[1]


@asynccontextmanager
async def serving_a_caller(
    upstream: ScriptedUpstream, grace: float, tape: str = "window"
) -> AsyncIterator[tuple[Command, Caller]]:
    """Run it in front of an upstream whose answers to the given client never end."""
    env = {"SHADOWCAT_SHUTDOWN_GRACE": str(grace), "SHADOWCAT_TAPE": tape}
    async with (
        serving("--upstream", upstream.url, env=env) as (command, base),
        caller(base + "/mcp", upstream) as client,
    ):
        yield command, client


async def test_it_says_where_it_serves_what_and_how(upstream: ScriptedUpstream) -> None:
    async with serving("--upstream", upstream.url, "--tape", "full") as (command, base):
        assert command.output.splitlines() == [
            f"Shadowcat 0.1.0 serves {base}/mcp -> {upstream.url}",
            "Store sqlite:///shadowcat.db, tape full. Ctrl-C stops.",
        ]
        async with caller(base + "/mcp", upstream) as client:
            assert client.session
    assert [each.message["method"] for each in upstream.received] == ["initialize"]


async def test_several_upstreams_are_said_one_by_one(upstream: ScriptedUpstream) -> None:
    named = ("--upstream", f"one={upstream.url}", "--upstream", URL)
    async with serving(*named) as (command, base):
        assert f"  {base}/one/mcp -> {upstream.url}\n  {base}/mcp -> {URL}\n" in command.output
        async with caller(base + "/one/mcp", upstream) as client:
            assert client.session


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_a_proxy_in_front_takes_off_stands_in_the_addresses_that_clients_get(
    upstream: ScriptedUpstream, workers: str
) -> None:
    SSEServer(upstream)
    options = ("--upstream", upstream.url, "--root-path", "/tools", "--workers", workers)
    async with (
        serving(*options) as (_, base),
        plain_http() as client,
        client.stream("GET", base + "/sse", headers={"Accept": "text/event-stream"}) as response,
    ):
        event = await anext(response.aiter_bytes())
    assert b"data: /tools/messages?session_id=" in event


async def test_what_may_be_secret_is_not_said() -> None:
    async with serving("--upstream", "https://example.com/mcp?key=hush") as (command, _):
        assert "-> https://example.com/mcp\n" in command.output
        assert "hush" not in command.output


async def test_an_option_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shadowcat.toml"
    file.write_text(f'upstream = "{URL}"\ntape = "full"\n')
    options = ("--config", str(file))
    for env, more, tape in (
        ({}, (), "full"),
        ({"SHADOWCAT_TAPE": "window"}, (), "window"),
        ({"SHADOWCAT_TAPE": "window"}, ("--tape", "off"), "off"),
    ):
        async with serving(*options, *more, env=env) as (command, _):
            assert f"tape {tape}." in command.output
            assert URL in command.output


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        ("", {}, "--upstream URL or SHADOWCAT_UPSTREAM=URL, such as http://"),
        ("--upstream 127.0.0.1:9", {}, "upstream '127.0.0.1:9' is no URL such as http://127.0.0.1:3001/mcp"),
        ("--upstream a=http://x/mcp --upstream a=http://y/mcp", {}, "give each a name of its own"),
        ("--upstream a/b=http://x/mcp", {}, "is no URL such as http://"),
        ("--upstream http://me:pw@x/mcp", {}, "has credentials, which would not be sent"),
        ("--upstream http://x/mcp#a", {}, "has a fragment, which would not be sent"),
        (f"--upstream {URL} --store memory", {}, "named by a URL, such as memory://"),
        (f"--upstream {URL} --store mongo://host", {}, "no store is installed for 'mongo://'"),
        (f"--upstream {URL} --tape some", {}, "is not one of 'off', 'window', 'full'"),
        (f"--upstream {URL} --port 70000", {}, "'--port': 70000 is not in the range"),
        (f"--upstream {URL} --config no.toml", {}, "the configuration file 'no.toml' does not exist"),
        (f"--upstream {URL}", {"SHADOWCAT_CONFIG": "/"}, "'/' cannot be read: Is a directory"),
        (f"--upstream {URL}", {"SHADOWCAT_TAPE": "x"}, "tape: Invalid enum value 'x', must be one of off, "),
        (f"--upstream {URL}", {"SHADOWCAT_TAPE_FRAMES": "x"}, "tape_frames: Expected `int`, got `str`"),
        (f"--upstream {URL} --root-path tools/", {}, "root_path: 'tools/' is no path such as /tools"),
        (f"--upstream {URL}", {"SHADOWCAT_KEEPALIVE": "0"}, "keepalive must be more than 0"),
    ],
)  # fmt: skip
async def test_a_wrong_setting_is_an_error_that_names_the_remedy(
    options: str, env: dict[str, str], said: str
) -> None:
    code, output = await result_of("shadowcat", "serve", *options.split(), env=env)
    assert code == 2
    assert said in output
    assert "Traceback" not in output


async def test_a_proxy_in_front_of_itself_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for host, own in (("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("0.0.0.0", "127.0.0.1")):
        where = f"http://{own}:{port}/mcp"
        code, output = await result_of(
            "shadowcat", "serve", "--upstream", where, "--host", host, "--port", str(port)
        )
        assert code == 2
        assert f"the upstream {where} is the address that the proxy itself listens on" in output


async def test_an_option_that_is_set_as_a_variable_is_said_to_be_none() -> None:
    async with serving("--upstream", URL, env={"SHADOWCAT_PORT": "1"}) as (command, _):
        await command.says("SHADOWCAT_PORT is no setting: it is an option of the command: --port NUMBER")


async def test_upstreams_are_written_as_in_the_environment_too() -> None:
    async with serving("--upstream", f"a={URL}, b={URL}?x=1,2") as (command, base):
        assert f"{base}/a/mcp -> {URL}\n" in command.output
        assert f"{base}/b/mcp -> {URL}\n" in command.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tape = ", "is no TOML: Invalid value (at "),
        ('tpae = "off"', "unknown setting 'tpae'; known are tape, "),
        ("port = 8080", "unknown setting 'port'; it is an option of the command: --port NUMBER"),
        ("upstream = 3", "upstream: Expected `object`, got `int`"),
        ('upstream = "x"', "upstream 'x' is no URL such as"),
    ],
)
async def test_a_wrong_file_is_an_error_that_names_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "shadowcat.toml"
    file.write_text(text)
    more = () if "upstream" in text else ("--upstream", URL)
    code, output = await result_of("shadowcat", "serve", "--config", str(file), *more)
    assert code == 2
    assert said in output
    assert "Traceback" not in output


async def test_a_busy_port_is_an_error_that_names_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = await result_of("shadowcat", "serve", "--upstream", URL, "--port", port)
    assert code == 1
    assert output == (
        f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use. "
        "Choose another port with --port; --port 0 picks a free one.\n"
    )


async def test_an_address_of_another_machine_is_an_error_that_names_the_remedy() -> None:
    code, output = await result_of("shadowcat", "serve", "--upstream", URL, "--host", "192.0.2.1")
    assert code == 1
    assert "Choose an address of this machine with --host" in output


STORE = """
from shadowcat_stores import MemoryStore, StoreUnusable

class Down(MemoryStore):
    @classmethod
    def from_url(cls, url):
        return cls()

    async def open(self):
        raise StoreUnusable("the password is wrong: put another one into the URL")
"""


async def test_a_store_that_no_waiting_opens_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "down_store.py").write_text(STORE)
    (tmp_path / "down_store-1.0.dist-info").mkdir()
    (tmp_path / "down_store-1.0.dist-info" / "METADATA").write_text("Name: down-store\nVersion: 1.0\n")
    entry_points = "[shadowcat.stores]\ndown = down_store:Down\n"
    (tmp_path / "down_store-1.0.dist-info" / "entry_points.txt").write_text(entry_points)
    options = ("--upstream", URL, "--port", "0", "--store", "down://")
    code, output = await result_of("shadowcat", "serve", *options, env={"PYTHONPATH": str(tmp_path)})
    assert code == 3
    assert "The session store: the password is wrong: put another one into the URL" in output
    assert "Traceback" not in output


# -- how it stops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_get_streams_at_once(
    upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    async with (
        serving_a_caller(upstream, grace=600) as (command, client),
        client.open_stream("GET") as chunks,
    ):
        command.send(number)
        assert [chunk async for chunk in chunks] == [b"retry: 1000\n\n"]  # a clean end: it may come back
        assert await command.ends() == 0
    assert "Traceback" not in command.output


async def test_a_signal_ends_a_stream_of_http_sse_that_misses_no_answer(upstream: ScriptedUpstream) -> None:
    server = SSEServer(upstream)
    env = {"SHADOWCAT_SHUTDOWN_GRACE": "600"}
    async with (
        serving("--upstream", upstream.url, env=env) as (command, base),
        plain_http() as client,
        client.stream("GET", base + "/sse", headers={"Accept": "text/event-stream"}) as response,
    ):
        events = Events(response)
        first = await events.next()
        assert first is not None
        assert first.data is not None
        sent = request("tools/call", 1, {"n": 1})
        accepted = await client.post(base + first.data.decode(), json=sent)
        assert accepted.status_code == 202
        assert message(await events.next())["result"] == {"n": 1}
        command.send(signal.SIGTERM)
        assert await events.rest() == []
        assert await command.ends() == 0
        await server.left.wait()
    assert "Traceback" not in command.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_answer_gets_its_grace_and_is_cut_after_it(
    upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    async with (
        serving_a_caller(upstream, grace=0.2) as (command, client),
        client.open_stream("POST") as chunks,
    ):
        command.send(number)
        # A cut answer must not look complete.
        assert is_said_to_be_lost([chunk async for chunk in chunks])
        assert await command.ends() == 0
    assert "Stopping. Open requests: 1, for 0.2 s. Ctrl-C ends them." in command.output
    assert "cut because the server stops: 1" in command.output
    assert "Traceback" not in command.output


async def test_a_request_without_an_answer_is_told_so_after_the_grace(upstream: ScriptedUpstream) -> None:
    answers: list[httpx2.Response] = []

    async with serving_a_caller(upstream, grace=0.2) as (command, client), anyio.create_task_group() as tasks:

        async def ask() -> None:
            answers.append(await client.ask("silent"))

        tasks.start_soon(ask)
        await client.reached_the_server.wait()
        command.send(signal.SIGINT)
        assert await command.ends() == 0
    (answer,) = answers
    assert answer.status_code == 502
    assert answer.json()["id"] == 7
    assert answer.json()["error"]["data"] == {"reason": "ambiguous_delivery"}
    assert "Traceback" not in command.output


async def test_a_second_ctrl_c_does_not_wait(upstream: ScriptedUpstream) -> None:
    async with (
        serving_a_caller(upstream, grace=600) as (command, client),
        client.open_stream("POST") as chunks,
    ):
        command.send(signal.SIGINT)
        await command.says("Stopping")
        command.send(signal.SIGINT)
        assert is_said_to_be_lost([chunk async for chunk in chunks])
        assert await command.ends() == 0
    assert "Traceback" not in command.output


async def test_an_upstream_that_breaks_is_one_line_in_the_log(upstream: ScriptedUpstream) -> None:
    async def breaks(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b": open\n\n")
        connection.cut()

    async with serving_a_caller(upstream, grace=5, tape="off") as (command, client):
        upstream.script = breaks
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.ask("tools/call")
        line = (await command.says(r"([^\n]*)A response was cut: [^\n]*ended half way[^\n]*\n"))[0]
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ERROR uvicorn.error: ", line)
        command.send(signal.SIGINT)
        assert await command.ends() == 0
    assert "Traceback" not in command.output
