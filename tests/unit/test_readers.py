"""Reading a response along."""

from __future__ import annotations

import gzip
import zlib

import httpx2
import pytest

from shadowcat.readers import Arrival, Reader, reader_for
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat_stores import MessageEnvelope

MESSAGE = b'{"jsonrpc":"2.0","id":1,"result":{}}'
ENVELOPE = MessageEnvelope(MESSAGE, "response", None, 1)


def reader(content_type: bytes, encoding: bytes = b"", limit: int = 1000) -> Reader | None:
    headers = [(b"Content-Type", content_type), (b"Content-Encoding", encoding)]
    return reader_for(UpstreamResponse(200, headers, httpx2.ByteStream(b"")), limit)


def read(reader: Reader | None, body: bytes, size: int = 5) -> list[Arrival]:
    assert reader is not None
    arrived = []
    for at in range(0, len(body), size):
        arrived += reader.feed(body[at : at + size])
    return arrived + reader.end()


@pytest.mark.parametrize(
    ("value", "media"),
    [
        (b"text/event-stream; charset=utf-8", Media.SSE),
        (b"Application/JSON", Media.JSON),
        (b"application/json-seq", Media.OTHER),
        (b"", Media.OTHER),
        (None, Media.OTHER),
    ],
)
def test_the_media_type_is_parsed_at_once(value: bytes | None, media: Media) -> None:
    assert Media.of(value) is media


@pytest.mark.parametrize("encoding", [b"", b"identity", b"gzip", b"deflate"])
@pytest.mark.parametrize("media", [b"application/json", b"text/event-stream"])
def test_what_arrives(media: bytes, encoding: bytes) -> None:
    body = MESSAGE if media == b"application/json" else b"id: 9\nevent: e\ndata: " + MESSAGE + b"\n\n"
    packed = {b"gzip": gzip.compress(body), b"deflate": zlib.compress(body)}.get(encoding, body)
    expected = Arrival([ENVELOPE]) if media == b"application/json" else Arrival([ENVELOPE], 1, "e", "9")
    assert read(reader(media, encoding), packed) == [expected]


@pytest.mark.parametrize(("media", "encoding"), [(b"image/png", b""), (b"application/json", b"br")])
def test_what_cannot_be_read_along(media: bytes, encoding: bytes) -> None:
    assert reader(media, encoding) is None


def test_a_body_that_is_no_message_arrives_as_it_is() -> None:
    assert read(reader(b"application/json"), b"oops") == [Arrival([MessageEnvelope(b"oops", "other")])]
    assert read(reader(b"text/event-stream"), b"data: oops\n\ndata:\n\n") == [
        Arrival([MessageEnvelope(b"oops", "other")], 1),
        Arrival([MessageEnvelope(b"", "other")], 2),
    ]


def test_an_empty_body_is_nothing() -> None:
    assert read(reader(b"application/json"), b"") == []


@pytest.mark.parametrize("size", [5, 2000])
def test_a_body_over_the_limit_arrives_as_nothing(size: int) -> None:
    assert read(reader(b"application/json"), MESSAGE + b" " * 1000, size) == []


def test_a_bomb_is_not_inflated() -> None:
    assert read(reader(b"application/json", b"gzip"), gzip.compress(b" " * 10_000_000), 20_000) == []


def test_gzip_of_several_members_is_read_whole() -> None:
    event = b"data: " + MESSAGE + b"\n\n"
    body = b"".join(gzip.compress(event) for _ in range(3))
    assert [each.position for each in read(reader(b"text/event-stream", b"gzip"), body, 20)] == [1, 2, 3]


def test_what_follows_gzip_and_is_none_is_not_kept() -> None:
    inflating = reader(b"application/json", b"gzip")
    assert inflating is not None
    inflating.feed(gzip.compress(MESSAGE) + b"junk")
    assert inflating.feed(b"x" * 100) == []


def test_ids_and_types_without_measure_are_left_out() -> None:
    stream = b"id: " + b"x" * 2000 + b"\nevent: " + b"y" * 2000 + b"\ndata: 1\n\n"
    (arrival,) = read(reader(b"text/event-stream", limit=10_000), stream, 5000)
    assert (arrival.event, arrival.event_id) == (None, None)


def test_what_is_no_gzip_arrives_as_nothing() -> None:
    assert read(reader(b"application/json", b"gzip"), b"no gzip at all") == []
