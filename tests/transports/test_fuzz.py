"""Random responses, valid and spoiled, split at random: both transports understand the same, or one of them
refuses for a reason that is listed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.transports.wires import Outcome, through_http1, through_httpx2

OURS_IS_STRICTER = (
    # llhttp's words for what h11 reads.
    "Duplicate Content-Length",
    "Invalid character in Content-Length",
    "Empty Content-Length",
    "Empty Transfer-Encoding",
    "Unexpected whitespace after header value",
    "Missing expected CR",
    "Missing expected LF",
    "Expected LF after CR",
    "Expected LF after headers",
    "Invalid header value char",
    "Invalid header field char",
    "Invalid character in chunk",
    "Expected LF after chunk",
    "Invalid HTTP version",
    "Invalid character in response",
    "Data after `Connection: close`",  # after an interim response
    # And our own.
    "no response of HTTP/1",
    "an interim response with a body",
)
STOCK_IS_STRICTER = (
    # h11's words for what llhttp reads.
    "no response line received",  # an empty line between an interim response and the final one
    "illegal status line",  # a bare CR there
)

TOKEN = st.text("abcXYZ-09!", min_size=1, max_size=8).map(str.encode)
VALUE = st.binary(max_size=12).map(lambda raw: bytes(each for each in raw if each >= 0x20 and each != 0x7F))
CHUNK = st.binary(min_size=1, max_size=40)


@st.composite
def responses(draw: Any) -> bytes:
    """Make a response that is one."""
    interim: bytes = draw(
        st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: a\r\n\r\n"])
    )
    status = draw(
        st.sampled_from([b"200 OK", b"201", b"204 No", b"304 Not", b"404 Not Found", b"500 ", b"299 \xe9"])
    )
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    headers = draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))
    headers += draw(st.sampled_from([[], [], [(b"Connection", b"close")], [(b"Connection", b"keep-alive")]]))
    body = b""
    chunks = draw(st.lists(CHUNK, max_size=4))
    framing = draw(st.sampled_from(["length", "chunks", "end", "both"]))
    if status[:3] not in (b"204", b"304"):
        if framing in ("chunks", "both"):
            headers.append((b"Transfer-Encoding", b"chunked"))
            extension = draw(st.sampled_from([b"", b";a=b", b';a="b"']))
            trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
            body = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in chunks)
            body += b"0\r\n%b\r\n" % trailer
        else:
            body = b"".join(chunks)
        if framing in ("length", "both"):
            headers.append((b"Content-Length", b"%d" % len(b"".join(chunks))))
    lines = b"".join(b"%b: %b\r\n" % pair for pair in draw(st.permutations(headers)))
    return interim + b"HTTP/%b %b\r\n%b\r\n%b" % (version, status, lines, body)


INTERESTING = st.sampled_from(
    b"\r|\n|\r\n|\0| |\t|:|;|,|0|5|\r\n |chunked|\x0b|\xff|-|+|0x|1.0|HTTP/1.1 200 OK\r\n|"
    b"Content-Length: 3\r\n|Transfer-Encoding: chunked\r\n".split(b"|")
)


@st.composite
def mutated(draw: Any) -> bytes:
    """Make a response, and spoil it in up to three places."""
    raw: bytes = draw(responses())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        cut = draw(st.integers(0, 4))
        new: bytes = draw(INTERESTING | st.just(b""))
        raw = raw[:at] + new + raw[at + cut :]
    return raw


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[start:end] for start, end in pairwise(edges)]


CUTS = st.lists(st.integers(0, 2000), max_size=12)
FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def compared(ours: Outcome, stock: Outcome) -> str:
    """Return how the two differ, or nothing."""
    if ours.is_whole and stock.is_whole:
        same = (ours.status, ours.body) == (stock.status, stock.body)
        # The stock transport writes the framing headers in its own way.
        if same and plain(ours.headers) == plain(stock.headers):
            return ""
    if not ours.is_whole and not stock.is_whole:
        return ""
    if stock.is_whole and any(reason in str(ours.error) for reason in OURS_IS_STRICTER):
        return ""
    if ours.is_whole and any(reason in str(stock.error) for reason in STOCK_IS_STRICTER):
        return ""
    return f"ours: {ours}\nstock: {stock}"


def plain(headers: Any) -> Any:
    framing = (b"content-length", b"transfer-encoding")
    return [(name, value.strip().lower() if name in framing else value) for name, value in headers]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


async def outcomes(raw: bytes, cuts: list[int]) -> tuple[Outcome, Outcome, Outcome]:
    pieces = pieces_of(raw, cuts)
    return await through_http1([raw]), await through_http1(pieces), await through_httpx2(pieces)


@FUZZ
@given(raw=responses(), cuts=CUTS)
def test_valid_responses_are_understood_alike(runner: asyncio.Runner, raw: bytes, cuts: list[int]) -> None:
    whole, ours, stock = runner.run(outcomes(raw, cuts))
    assert whole == ours
    assert ours.is_whole
    assert compared(ours, stock) == ""


@FUZZ
@given(raw=mutated(), cuts=CUTS)
@example(raw=b"HTTP/1.1 100 C\r\n\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", cuts=[])
def test_spoiled_responses_are_understood_alike_or_refused(
    runner: asyncio.Runner, raw: bytes, cuts: list[int]
) -> None:
    whole, ours, stock = runner.run(outcomes(raw, cuts))
    # How it is split makes no difference, except to what is known of a fault.
    assert (whole.status, whole.headers, whole.body) == (ours.status, ours.headers, ours.body)
    assert str(whole.error) == str(ours.error)
    assert compared(ours, stock) == ""
