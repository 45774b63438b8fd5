"""`shadowcat demo`, and its sample server by itself."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from itertools import pairwise

import click
import pytest
from mcp import Client, MCPError

from shadowcat.demo import require_sdk
from shadowcat.demo.sample import STEP
from tests.commands._command import BIN, DEADLINE, result_of, started
from tests.support.plain import plain_http


@pytest.fixture(scope="module")
def told() -> str:
    """What the demo prints when it runs once."""
    ran = subprocess.run(
        [BIN / "shadowcat", "demo", "--once", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_it_calls_each_kind_of_tool_through_the_proxy(told: str) -> None:
    at_client, at_server = re.findall(r"session id at the \w+ +(\S+)", told)
    assert at_client != at_server
    assert 'result: "hello"' in told
    assert 'the server asks: "What is your name?"  the client answers: Ada\n  result: "Hello, Ada!"' in told
    assert "the store has the session no more" in told
    assert "Traceback" not in told


def test_each_request_of_the_clients_is_one_at_the_server(told: str) -> None:
    counts = re.findall(r"requests: (\d+) sent, (\d+) arrived", told)
    assert (
        [sent for sent, _ in counts] == [arrived for _, arrived in counts] == ["3", "1", "1", "1", "2", "1"]
    )
    assert (
        "In all: 9 requests sent, 9 arrived.\nThe proxy counted 9 from the client and 9 to the server."
        in told
    )


def test_progress_is_told_as_it_arrives(told: str) -> None:
    times = [float(each) for each in re.findall(r"\+(\d+\.\d\d) s  progress: step \d of 3", told)]
    assert len(times) == 3
    # On a busy machine one may be told late, but those that were held back come all at once.
    assert all(later - earlier > STEP / 10 for earlier, later in pairwise(times))


def test_the_tape_is_shown_in_order(told: str) -> None:
    tape = re.findall(r"^ +(\d+)  (client ->|<- server)  (\w+) (\S*)", told, re.MULTILINE)
    assert [int(seq) for seq, *_ in tape] == list(range(1, 17))
    assert tape[0][1:] == ("client ->", "request", "initialize")
    assert ("<- server", "request", "elicitation/create") in [each[1:] for each in tape]
    assert [each[3] for each in tape].count("notifications/progress") == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="what the demo says to paste is curl")
async def test_what_it_says_to_paste_works_and_ctrl_c_stops_it() -> None:
    async with started("shadowcat", "demo", "--port", "0") as command:
        printed = (await command.says(r"Or paste in another terminal(?s:.*)/metrics\n"))[0]
        pasted = "\n".join(line for line in printed.splitlines() if line.startswith("  "))
        async with started("/bin/bash", "-euc", pasted) as shell:
            assert await shell.ends() == 0, shell.output
        session, *_ = shell.output.splitlines()
        assert re.fullmatch(r"[\w-]{32}", session)
        assert shell.output.count("notifications/progress") == 5
        assert "done in 5 steps" in shell.output
        assert "shadowcat_client_requests_total 11\n" in shell.output
        assert 'shadowcat_upstream_requests_total{reason="forward"} 11\n' in shell.output
        command.send(signal.SIGINT)
        assert await command.ends() == 0
    assert "Traceback" not in command.output


async def test_ctrl_c_stops_it_with_streams_open() -> None:
    async with started("shadowcat", "demo", "--port", "0") as command:
        url = (await command.says(r"address for an MCP client[^\n]*\n\n +(http\S+)\n"))[1]

        async def stop(progress: float, total: float | None, message: str | None) -> None:
            command.send(signal.SIGINT)

        async with Client(url, mode="legacy") as client:
            with pytest.raises(MCPError):
                await client.call_tool("slow", {"steps": 1000}, progress_callback=stop)
            assert await command.ends() == 0
    assert "Stopping. Open requests: " in command.output
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("after", "number"),
    [
        ("Python SDK", signal.SIGINT),
        ("session id at the server", signal.SIGTERM),
        ("progress: step 1 of 3", signal.SIGINT),
    ],
)
async def test_a_signal_stops_it_in_the_middle(after: str, number: signal.Signals) -> None:
    async with started("shadowcat", "demo", "--port", "0") as command:
        await command.says(after)
        command.send(number)
        assert await command.ends() in (0, -signal.SIGTERM)
    assert "Traceback" not in command.output


async def test_a_busy_port_is_an_error_that_names_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = await result_of("shadowcat", "demo", "--port", port)
    assert code == 1
    assert output.startswith(f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use. ")
    assert "--port" in output


def test_a_missing_sdk_is_an_error_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(click.ClickException, match=re.escape("pip install 'shadowcat-mcp[demo]'")):
        require_sdk()


async def test_the_sample_server_runs_alone() -> None:
    argv = ("python", "-m", "shadowcat.demo.server", "--host", "127.0.0.1", "--port", "0")
    async with started(*argv) as command:
        url = (await command.says(r"Sample MCP server on (http://127\.0\.0\.1:\d+/mcp)\. Ctrl-C stops\."))[1]
        async with Client(url, read_timeout_seconds=DEADLINE) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo", "slow", "greet"]
        command.send(signal.SIGINT)
        assert await command.ends() == 0
    assert "Traceback" not in command.output


async def test_the_sample_server_takes_any_host_where_it_listens_on_all() -> None:
    """As in `compose.yaml`, where the proxy knows it by its service name."""
    async with started(
        "python", "-m", "shadowcat.demo.server", "--host", "0.0.0.0", "--port", "0"
    ) as command:
        port = (await command.says(r"http://0\.0\.0\.0:(\d+)/mcp"))[1]
        async with plain_http() as http:
            answer = await http.post(
                f"http://127.0.0.1:{port}/mcp",
                headers={"Host": "sample:3001", "Accept": "application/json, text/event-stream"},
                json={"jsonrpc": "2.0", "id": 1, "method": "ping"},
            )
        assert "sample" not in answer.text
        assert answer.status_code != 421
