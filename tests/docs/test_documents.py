"""What the documents show works, and what they repeat is as the code has it."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]
from uvicorn.main import main as uvicorn

from shadowcat import __version__, cli
from shadowcat.settings import Deployment, parse_upstreams
from shadowcat_stores import Frame, MessageEnvelope, Session, store_from_url
from tests.docs import tables
from tests.docs._markdown import ROOT, Block, blocks, links
from tests.support.plain import plain_http
from tests.support.proxying import Proxied
from tests.support.serving import serve
from tests.support.upstream import ScriptedUpstream

UPSTREAM = "http://127.0.0.1:3001/mcp"
"""What the documents write for the server."""


@pytest.mark.parametrize("block", blocks("python"), ids=str)
async def test_an_app_of_the_documents_serves(block: Block, upstream: ScriptedUpstream) -> None:
    assert block.serves, f"{block} says in no comment where its app answers"
    assert UPSTREAM in block.text
    names: dict[str, Any] = {}
    source = block.text.replace(UPSTREAM, upstream.url)
    exec(compile(source, str(block), "exec", dont_inherit=True), names)  # noqa: S102
    sessions = set()
    async with serve(names["app"]) as base, plain_http() as client:
        for path in block.serves:
            proxy = Proxied(None, None, base, client, path)  # type: ignore[arg-type]
            await proxy.begin()
            assert (await proxy.call()).status_code == 200
            sessions.add(proxy.session_id)
    assert len(sessions) == len(block.serves)


async def test_tapes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (each for each in blocks("python", "module") if each.names == ("show_tapes",))
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec", dont_inherit=True), names)  # noqa: S102
    url = f"sqlite:///{tmp_path}/shadowcat.db"
    async with store_from_url(url) as store:
        now = store.clock()
        await store.create_session(Session(id="s", created_at=now, expires_at=now + 60, upstream="default"))
        message = MessageEnvelope(b'{"jsonrpc":"2.0","method":"x"}', "notification", "x")
        await store.add_frame(Frame(session_id="s", direction="client", envelope=message, at=now))
        await names["show_tapes"](url)
    assert capsys.readouterr().out == f"s 1 client {message.raw.decode()}\n"


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_file_of_the_documents_is_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "shadowcat.toml"
    file.write_text(block.text)
    assert Deployment.load({}, {"config": str(file)}).upstream


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_the_commands_of_the_documents_exist(block: Block) -> None:
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        while "=" in words[0]:
            assert words.pop(0).partition("=")[0] in SETTINGS
        assert words[0] in CHECKS, f"{block}: nothing checks {words[0]!r}"
        CHECKS[words[0]](words[1:])


SETTINGS = {f"SHADOWCAT_{name.upper()}" for name in Deployment.__struct_fields__} | {"SHADOWCAT_CONFIG"}


@pytest.mark.parametrize("block", blocks("json", "error"), ids=str)
def test_an_error_is_as_it_is_shown(block: Block) -> None:
    shown = json.loads(block.text)
    (kind,) = (each for each in tables.own_errors() if each.reason == shown["error"]["data"]["reason"])
    said = json.loads(kind(shown["error"]["message"]).message("the request's"))
    assert said == shown


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{word}:.* ## ", makefile, re.MULTILINE) for word in words)


def check_shadowcat(words: list[str]) -> None:
    command = cli.main.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    assert parse_upstreams(context.params["upstreams"])


def check_uvicorn(words: list[str]) -> None:
    assert uvicorn.make_context("uvicorn", words).params["app"] == "shadowcat.asgi:app"


def check_gunicorn(words: list[str]) -> None:
    parsed = Config().parser().parse_args(words)
    assert parsed.worker_class == "uvicorn_worker.UvicornWorker"
    assert parsed.args == ["shadowcat.asgi:app"]


def check_docker(words: list[str]) -> None:
    assert words[0] in ("build", "run", "compose")
    given = [value.partition("=")[0] for flag, value in pairwise(words) if flag == "-e"]
    assert set(given) <= SETTINGS


def check_pip(words: list[str]) -> None:
    assert words == ["install", "."]


CHECKS = {
    "make": check_make,
    "shadowcat": check_shadowcat,
    "uvicorn": check_uvicorn,
    "gunicorn": check_gunicorn,
    "docker": check_docker,
    "pip": check_pip,
}


@pytest.mark.parametrize(("document", "target"), links(), ids=str)
def test_a_link_leads_somewhere(document: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    linked = document.parent / path if path else document
    assert linked.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w-]", "", each.lower().replace(" ", "-")) for each in headings]


def test_the_tables_of_the_readme_say_what_the_code_says() -> None:
    readme = tables.README.read_text("utf-8")
    assert readme == tables.replaced(readme), "write them anew: python -m tests.docs.tables"


def test_the_readme_shows_what_the_command_says() -> None:
    readme = tables.README.read_text("utf-8")
    assert f"Shadowcat {__version__} serves http://127.0.0.1:8080/mcp -> {UPSTREAM}\n" in readme
    assert "Store sqlite:///shadowcat.db, tape window. Ctrl-C stops.\n" in readme
    assert f"this version, {__version__}." in readme


def test_the_first_screen_of_the_readme_has_the_promise_the_picture_and_the_two_commands() -> None:
    screen = "\n".join(tables.README.read_text("utf-8").splitlines()[:32])
    assert "One client request becomes exactly one upstream request" in screen
    assert "MCP client ───" in screen
    assert "make run " in screen
    assert "make test " in screen


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0][0] == __version__
    assert all(re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", day) for _, day in versions)


def test_an_entry_of_the_changelog_is_a_whole_sentence() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    entries = re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)
    assert entries
    assert all(entry.endswith(".") for entry in entries)
