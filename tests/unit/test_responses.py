"""What the client is handed, as messages of ASGI."""

from __future__ import annotations

from starlette.types import Message

from shadowcat.responses import WholeResponse


async def receive() -> Message:
    raise AssertionError


async def test_a_whole_answer_leaves_in_two_messages() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-a", b"1"), (b"x-a", b"2")]
    await WholeResponse(404, headers, b"body")({"type": "http"}, receive, send)
    assert sent == [
        {"type": "http.response.start", "status": 404, "headers": headers},
        {"type": "http.response.body", "body": b"body"},
    ]


async def test_a_client_that_has_left_is_no_error() -> None:
    async def send(message: Message) -> None:
        raise OSError

    await WholeResponse(200, [], b"")({"type": "http"}, receive, send)
