"""Trouble with the SQLite file, seen through a proxy that is not restarted for it."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from shadowcat_stores import store_from_url
from tests.durability._load import Conversation, NumberedServer, answers
from tests.durability._trouble import STORE_TIMEOUT, Patient
from tests.support.plain import plain_http
from tests.support.serve_command import DEADLINE, serve_command
from tests.support.upstream import ScriptedUpstream


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@asynccontextmanager
async def patient(
    upstream: ScriptedUpstream, path: Path, *, busy_timeout: float = STORE_TIMEOUT, **settings: Any
) -> AsyncIterator[Patient]:
    server = NumberedServer(upstream)
    known = {"store_timeout": STORE_TIMEOUT, "session_cache": 0, **settings}
    url = f"sqlite:///{path}?busy_timeout={busy_timeout}"
    with anyio.fail_after(DEADLINE):
        async with plain_http() as http, serve_command(upstream.url, url, **known) as served:
            conversation = Conversation(http)
            await conversation.begin(served.url)
            await conversation.call(served.url, 2)
            ill = Patient(served, http, server, conversation, url)
            await ill.heals()  # so that what is recorded so far is stored
            yield ill
            assert "Traceback" not in served.command.output


async def _refuses_what_writes(ill: Patient) -> None:
    """Check that new sessions are refused, and that one that is there goes on: it is only read."""
    for _ in range(2):
        await ill.refuses_new_sessions()
        await ill.conversation.call(ill.served.url, 2)
        await ill.goes_on_without_a_session()


@pytest.mark.parametrize(
    ("busy_timeout", "reason"),
    [
        (STORE_TIMEOUT, "another program keeps it locked: end its transaction"),
        # The proxy gives up first, and then nobody can say why.
        (60.0, "did not answer within"),
    ],
)
async def test_locked_by_another_program(
    upstream: ScriptedUpstream, path: Path, busy_timeout: float, reason: str
) -> None:
    async with patient(upstream, path, busy_timeout=busy_timeout) as ill:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await _refuses_what_writes(ill)
        await ill.is_not_ready(reason)
        other.execute("ROLLBACK")
        other.close()
        assert await ill.heals() < 2.0
        await ill.has_lost_nothing()


@contextmanager
def _no_room(pid: int, path: Path) -> Iterator[None]:
    """Let the files of the process grow no more, as on a full disk."""
    smallest = min(each.stat().st_size for each in path.parent.iterdir())
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (smallest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def test_no_room_left(upstream: ScriptedUpstream, path: Path) -> None:
    async with patient(upstream, path) as ill:
        with _no_room(ill.served.command.pid, path):
            await _refuses_what_writes(ill)
            await ill.is_not_ready("full")
        assert await ill.heals() < 2.0
        await ill.has_lost_nothing()


async def test_damaged_and_restored(upstream: ScriptedUpstream, path: Path) -> None:
    async with patient(upstream, path) as ill:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        whole = path.read_bytes()
        path.write_bytes(b"no database " * (len(whole) // 12))
        for _ in range(2):
            await ill.refuses_new_sessions()
            await ill.refuses_the_session()
            await ill.goes_on_without_a_session()
        await ill.is_not_ready("it is damaged, or no SQLite database: ")
        path.write_bytes(whole)
        assert await ill.heals() < 2.0
        await ill.has_lost_nothing()


async def test_a_message_that_no_store_can_keep(upstream: ScriptedUpstream, path: Path) -> None:
    async with patient(upstream, path, tape="full") as ill:
        headers = {"Mcp-Session-Id": ill.conversation.session_id, "Content-Type": "application/json"}
        odd = rb'{"jsonrpc":"2.0","id":0,"method":"\ud800","params":{"events":0}}'
        response = await ill.http.post(ill.served.url, content=odd, headers=headers)
        assert response.status_code == 200
        before = len(ill.conversation.items)
        await ill.conversation.call(ill.served.url, 2)
        await ill.heals()
        async with store_from_url(ill.store_url) as store:
            tape = await store.get_frames(ill.conversation.session_id)
        # Its answer is there in any case, and so is all that came later.
        raws = [frame.envelope.raw for frame in tape]
        assert raws.count(answers(0, 0)[0]) == 1
        for item in ill.conversation.items:
            assert raws.count(item.raw) == 1
        kinds = [frame.envelope.kind for frame in tape[before:]]
        dropped = await ill.served.metric(ill.http, "frames_dropped_total")
        assert kinds.count("gap") == dropped
        assert kinds.count("request") == 2 - dropped


async def test_deleted(upstream: ScriptedUpstream, path: Path) -> None:
    async with patient(upstream, path) as ill:
        for each in path.parent.iterdir():
            each.unlink()
        await ill.is_not_ready(
            "was deleted, moved away or replaced while it was in use: put it back, or wait"
        )
        await ill.refuses_new_sessions()
        await ill.refuses_the_session()
        await ill.goes_on_without_a_session()
        assert await ill.heals() < 6.0
        assert "is made anew: all sessions and tapes are gone" in ill.served.command.output
        conversation = Conversation(ill.http)
        await conversation.begin(ill.served.url)
        async with store_from_url(ill.store_url) as store:
            assert await store.get_session(conversation.session_id) is not None
