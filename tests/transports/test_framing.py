"""Where a response begins and ends, and which ones are refused: both transports, over every way of splitting.

What could be understood in two ways is refused, so that nobody smuggles a response in.
https://www.rfc-editor.org/rfc/rfc9112#section-11
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.transports.wires import Outcome, through_http1, through_httpx2


@pytest.fixture
def anyio_backend() -> str:
    """Run on one loop: none of them has a part in this."""
    return "asyncio"


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"


class Whole(NamedTuple):
    """A response that is one."""

    raw: bytes
    body: bytes = b""
    reused: bool = True
    status: int = 200
    method: str = "GET"


WHOLE = {
    "length": Whole(OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "length 0": Whole(OK + EMPTY),
    "chunks": Whole(CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
    "chunks in capitals": Whole(
        OK + b"TRANSFER-ENCODING: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789"
    ),
    "chunks of a large size": Whole(CHUNKED + b"fFf\r\n" + b"x" * 4095 + b"\r\n0\r\n\r\n", b"x" * 4095),
    "chunk size with zeros": Whole(CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "chunk extensions": Whole(CHUNKED + b'5;a=b;c="d;e"\r\nhello\r\n0;x\r\n\r\n', b"hello"),
    "trailers": Whole(CHUNKED + b"5\r\nhello\r\n0\r\nDigest: x\r\nContent-Type: y\r\n\r\n", b"hello"),
    "until the end": Whole(OK + b"\r\nhello", b"hello", reused=False),
    "until the end, empty": Whole(OK + b"\r\n", reused=False),
    "connection: close": Whole(
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", b"hello", reused=False
    ),
    "HTTP/1.0": Whole(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", reused=False),
    "HTTP/1.0 until the end": Whole(b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", reused=False),
    "no reason": Whole(b"HTTP/1.1 200 \r\n" + EMPTY),
    "no reason, no space": Whole(b"HTTP/1.1 200\r\n" + EMPTY),
    "status 999": Whole(b"HTTP/1.1 999 Odd\r\n" + EMPTY, status=999),
    "204": Whole(b"HTTP/1.1 204 No Content\r\n\r\n", status=204),
    "204 with a length": Whole(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", status=204, reused=False
    ),
    "304 with a length": Whole(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", status=304),
    "205 with a body": Whole(b"HTTP/1.1 205 Reset\r\nContent-Length: 5\r\n\r\nhello", b"hello", status=205),
    "HEAD": Whole(OK + b"Content-Length: 5\r\n\r\n", reused=False, method="HEAD"),
    "HEAD of chunks": Whole(CHUNKED, reused=False, method="HEAD"),
    "HEAD without a length": Whole(OK + b"\r\n", reused=False, method="HEAD"),
    "100": Whole(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "103, twice": Whole(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 2 + CHUNKED + HELLO, b"hello"),
    "upgrade offered": Whole(OK + b"Upgrade: h2c\r\nConnection: upgrade\r\n" + EMPTY),
    "both lengths": Whole(
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO, b"hello", reused=False
    ),
    "both lengths, turned": Whole(
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + HELLO, b"hello", reused=False
    ),
}  # fmt: skip

REFUSED = {
    "nothing": b"",
    "half a head": OK + b"Content-Le",
    "half a status": b"HTTP/1.1 2",
    "half a body": OK + b"Content-Length: 6\r\n\r\nhello",
    "half a chunk": CHUNKED + b"6\r\nhello",
    "half a chunk line": CHUNKED + b"5\r\nhello\r\n0",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "no end of the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n",
    "only 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "empty line before it": b"\r\n" + OK + EMPTY,
    "bare CR before it": b"\r" + OK + EMPTY,
    "RTSP": b"RTSP/1.0 200 OK\r\n" + EMPTY,
    "other protocol": b"220 smtp.example ready\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n" + EMPTY,
    "HTTP/1.10": b"HTTP/1.10 200 OK\r\n" + EMPTY,
    "status of two digits": b"HTTP/1.1 20 OK\r\n" + EMPTY,
    "status of four digits": b"HTTP/1.1 2000 OK\r\n" + EMPTY,
    "status 000": b"HTTP/1.1 000 OK\r\n" + EMPTY,
    "status 099": b"HTTP/1.1 099 OK\r\n" + EMPTY,
    "lengths that differ": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "list of lengths that differ": OK + b"Content-Length: 5, 6\r\n\r\nhello!",
    "length +5": OK + b"Content-Length: +5\r\n\r\nhello",
    "length -5": OK + b"Content-Length: -5\r\n\r\nhello",
    "length 0x5": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "length 5 5": OK + b"Content-Length: 5 5\r\n\r\nhello",
    "length empty": OK + b"Content-Length:\r\n\r\nhello",
    "length too large": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "gzip coding": OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + HELLO,
    "chunked, gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + HELLO,
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n" + HELLO,
    "\\x0bchunked": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + HELLO,
    "identity": OK + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    "obs-fold before the first": OK + b" A: b\r\n" + EMPTY,
    "bare CR in a header": OK + b"A: b\rC: d\r\n" + EMPTY,
    "bare CR at the end": OK + b"Content-Length: 0\r\n\rX",
    "NUL in a value": OK + b"A: b\0c\r\n" + EMPTY,
    "NUL in a name": OK + b"A\0: b\r\n" + EMPTY,
    "space before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "space in a name": OK + b"A B: c\r\n" + EMPTY,
    "no colon": OK + b"Abc\r\n" + EMPTY,
    "no name": OK + b": b\r\n" + EMPTY,
    "name that is no token": OK + b"A@: b\r\n" + EMPTY,
    "chunk size empty": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "chunk size -5": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "chunk size 0x5": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size with a space before": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
    "chunk size too large": CHUNKED + b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"5\r\nhelloXX\r\n0\r\n\r\n",
    "chunk without its end": CHUNKED + b"5\r\nhello0\r\n\r\n",
    "head too long": OK + b"A: " + b"b" * 200_000 + b"\r\n" + EMPTY,
    "endless head": OK + b"A: b\r\n" * 40_000,
    "endless trailers": CHUNKED + b"0\r\n" + b"A: b\r\n" * 40_000,
    "endless extension": CHUNKED + b"5;" + b"a" * 200_000,
}

ACCEPTED_DIFFERENCES = {
    # What the stock transport (h11) reads, and ours refuses.
    "same length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of one length": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "obs-fold": OK + b"A: b\r\n c\r\n" + EMPTY,
    "obs-fold of the length": OK + b"Content-Length:\r\n 5\r\n\r\nhello",
    "obs-fold of the coding": OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + HELLO,
    "bare LF after the status": b"HTTP/1.1 200 OK\n" + EMPTY,
    "bare LF after a header": OK + b"A: b\n" + EMPTY,
    "bare LF at the end": OK + b"Content-Length: 0\r\n\n",
    "control in a value": OK + b"A: b\x01c\r\n" + EMPTY,
    "chunk size with a space behind": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "extension with a control": CHUNKED + b"5;a\0b\r\nhello\r\n0\r\n\r\n",
    "extension with a bare CR": CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n" + EMPTY,
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n" + EMPTY,
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n" + EMPTY,
    "interim response with a length": b"HTTP/1.1 103 Early\r\nContent-Length: 5\r\n\r\n" + OK + EMPTY,
    "interim response that closes": b"HTTP/1.1 100 C\r\nConnection: close\r\n\r\n" + OK + EMPTY,
    "too many headers": OK + b"".join(b"A%d: b\r\n" % n for n in range(300)) + EMPTY,
}


def splits(raw: bytes) -> dict[str, list[bytes]]:
    """Return the response whole, byte by byte, and in two at every position (of long ones: at some)."""
    step = 1 if len(raw) < 2000 else len(raw) // 20
    found = {f"at {at}": [raw[:at], raw[at:]] for at in range(1, len(raw), step)}
    size = 1 if len(raw) < 2000 else 1000
    return found | {"whole": [raw], "small": [raw[at : at + size] for at in range(0, len(raw), size)]}


@pytest.mark.parametrize("name", WHOLE)
async def test_responses_that_are_whole(name: str) -> None:
    case = WHOLE[name]
    stock = await through_httpx2([case.raw], case.method)
    assert (stock.status, stock.body, stock.error) == (case.status, case.body, None)
    for split, pieces in splits(case.raw).items():
        ours = await through_http1(pieces, case.method)
        assert (ours.status, ours.body, ours.error) == (case.status, case.body, None), split
        assert ours.headers == stock.headers, split
        assert ours.kept == case.reused, split


@pytest.mark.parametrize("name", REFUSED)
async def test_responses_that_are_refused(name: str) -> None:
    for split, pieces in splits(REFUSED[name]).items():
        ours = await through_http1(pieces)
        assert_refused(ours, split)
        assert not ours.kept
    assert_refused(await through_httpx2(splits(REFUSED[name])["small"]), "stock")


@pytest.mark.parametrize("status", [b"000", b"099"])
async def test_a_status_that_is_none_is_refused_at_once(status: bytes) -> None:
    """Not only when the connection ends, which it may never do."""
    outcome = await through_http1([b"HTTP/1.1 %b Odd\r\n\r\nwhat" % status])
    assert "malformed" in str(outcome.error)


async def test_nothing_is_handed_on_of_a_head_that_is_too_long() -> None:
    assert (await through_http1([REFUSED["head too long"]])).status == 0


@pytest.mark.parametrize("name", ACCEPTED_DIFFERENCES)
async def test_responses_that_only_the_stock_transport_reads(name: str) -> None:
    for split, pieces in splits(ACCEPTED_DIFFERENCES[name]).items():
        ours = await through_http1(pieces)
        assert_refused(ours, split)
        assert not ours.kept
    assert (await through_httpx2([ACCEPTED_DIFFERENCES[name]])).is_whole


def assert_refused(outcome: Outcome, split: str) -> None:
    assert type(outcome.error).__name__ == "RemoteProtocolError", (split, str(outcome))


@pytest.mark.parametrize(
    "garbage", [b"X", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\0", b"HTTP/1.1 100 C\r\n\r\n"]
)
@pytest.mark.parametrize("raw", [OK + b"Content-Length: 5\r\n\r\nhello", CHUNKED + HELLO])
async def test_what_follows_a_response_unasked_ends_the_connection(raw: bytes, garbage: bytes) -> None:
    for split, pieces in splits(raw + garbage).items():
        ours = await through_http1(pieces)
        assert (ours.status, ours.body, ours.error) == (200, b"hello", None), split
        assert not ours.kept, split


async def test_a_101_is_handed_on_and_ends_the_connection() -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    for pieces in splits(raw).values():
        ours = await through_http1(pieces)
        assert (ours.status, ours.body, ours.error) == (101, b"", None)
        assert not ours.kept


async def test_what_came_of_a_body_that_breaks_off_is_handed_on_first() -> None:
    for raw in (REFUSED["half a body"], REFUSED["half a chunk"], REFUSED["chunk longer than it says"]):
        for pieces in splits(raw).values():
            ours = await through_http1(pieces)
            assert ours.body == b"hello"
            assert ours.error is not None


async def test_headers_are_handed_on_as_they_came() -> None:
    pairs: list[Any] = [
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"X", b"\xe9 \t x"),
        (b"Empty", b""),
    ]
    raw = OK + b"".join(b"%b:\t %b \t\r\n" % pair for pair in pairs) + EMPTY
    for pieces in splits(raw).values():
        ours = await through_http1(pieces)
        assert ours.headers[:-1] == [(name.lower(), value) for name, value in pairs]
        assert ours.headers == (await through_httpx2([raw])).headers
