"""What docs/stateless.md shows works."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs._markdown import blocks
from tests.support.proxying import Proxied, request


async def test_it_shows_what_passed_without_a_session(
    proxy: Proxied, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (each for each in blocks("python", "module") if each.names == ("show",))
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec", dont_inherit=True), names)  # noqa: S102
    await proxy.begin()
    proxy.session_id = ""
    await proxy.post(request("tools/call", "q-1", {"x": 1}), MCP_Protocol_Version="2026-07-28")
    await proxy.service.recorder.flush()
    await names["show"](proxy.store)
    printed = capsys.readouterr().out
    assert printed.startswith("default ")
    assert printed.count("q-1") == 2
    assert "initialize" not in printed
