"""The demo's count is a check: it notices a proxy that sends more than it got."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shadowcat.demo.sample import sample_app
from shadowcat.demo.tour import Tour
from tests.support.proxying import proxied
from tests.support.serving import serve


async def test_a_request_too_many_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    async def requests(request: Request) -> Response:
        """Answer as a server does that gets two requests whatever the client sends."""
        nonlocal asked
        asked += 1
        return JSONResponse([{"request": "POST tools/call", "session_id": "s"}] * 2 * asked)

    said = Starlette(routes=[Route("/requests", requests)])
    async with (
        serve(sample_app("127.0.0.1")) as sample,
        serve(said) as server,
        proxied(sample + "/mcp") as proxy,
    ):
        assert not await Tour(proxy.url, proxy.service, server).run()
    out = capsys.readouterr().out
    assert (
        "requests: 1 sent (POST tools/list)\n       but: 2 arrived (POST tools/call, POST tools/call)" in out
    )
    assert "Not one upstream request for each client request: this is a bug of Shadowcat's." in out
