"""Finding events on bytes: nothing is lost, and where the chunks were cut does not matter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shadowcat.sse import SSEBlock, SSEFramer, with_data, with_id, write_event

lines = st.sampled_from(
    [
        b"data: x",
        b"data:",
        b"data",
        b"data:  two",
        b"id: 7",
        b"id:",
        b"id: \0",
        b"event: e",
        b": note",
        b"retry: 5",
        b"odd",
    ]
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.lists(st.tuples(lines | st.just(b""), ends), max_size=25).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


def events(blocks: list[SSEBlock]) -> list[tuple[bytes, str | None, str | None]]:
    return [(block.data, block.event, block.id) for block in blocks if block.data is not None]


def reference(stream: bytes) -> list[tuple[bytes, str | None, str | None]]:
    """Parse line by line, as the standard's text says; ids and types per event."""
    found: list[tuple[bytes, str | None, str | None]] = []
    data: list[bytes] = []
    event: str | None = None
    event_id: str | None = None
    for line in stream.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True):
        text = line.rstrip(b"\r\n")
        if text == line:
            break  # not ended
        if not text:
            if data:
                found.append((b"\n".join(data), event, event_id))
            data, event, event_id = [], None, None
            continue
        name, _, value = text.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            event_id = value.decode("utf-8", "replace")
    return found


@given(streams, st.booleans(), st.lists(st.integers(0, 300), max_size=12))
def test_framing_conserves_bytes_and_does_not_depend_on_chunks(
    stream: bytes, bom: bool, cuts: list[int]
) -> None:
    stream = b"\xef\xbb\xbf" * bom + stream
    at = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    framer = SSEFramer()
    blocks = [block for start, end in pairwise(at) for block in framer.feed(stream[start:end])]
    assert b"".join(block.raw for block in blocks) + framer.pending == stream
    assert events(blocks) == reference(stream)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_any_bytes_are_conserved(stream: bytes, cuts: list[int]) -> None:
    at = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    framer = SSEFramer()
    blocks = [block for start, end in pairwise(at) for block in framer.feed(stream[start:end])]
    assert b"".join(block.raw for block in blocks) + framer.pending == stream


def test_an_event_is_given_out_as_soon_as_its_blank_line_is_here() -> None:
    framer = SSEFramer()
    assert framer.feed(b"data: a\r\n\r") == [SSEBlock(b"data: a\r\n\r", b"a")]
    # The LF belonged to that blank line, and makes no event of its own.
    assert events(framer.feed(b"\ndata: b\n\n")) == [(b"b", None, None)]


def test_several_data_lines_are_one_event() -> None:
    blocks = SSEFramer().feed(b"id: 1\nevent: e\ndata: {\ndata: }\n\n")
    assert events(blocks) == [(b"{\n}", "e", "1")]


def test_comments_and_retry_are_no_events() -> None:
    assert events(SSEFramer().feed(b": hi\n\nretry: 10\n\nid: 5\n\n")) == []


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_block_over_the_limit_comes_out_in_parts_and_unread(size: int) -> None:
    stream = b"data: a\n\ndata: " + b"x" * 5000 + b"\n\ndata: b\n\n"
    framer = SSEFramer(limit=100)
    blocks: list[SSEBlock] = []
    for at in range(0, len(stream), size):
        blocks += framer.feed(stream[at : at + size])
        assert len(framer.pending) <= 100 + size
    assert b"".join(block.raw for block in blocks) == stream
    assert [block.data for block in blocks if block.data is not None] == [b"a", b"b"]
    assert [block.unread for block in blocks].count(True) == 1


def test_retry_is_read_where_it_is_a_number() -> None:
    stream = b"retry: 10\n\nretry: 1s\n\nretry:\n\nretry: 99999999999\n\n"
    assert [block.retry for block in SSEFramer().feed(stream)] == [10, None, None, None]


@given(streams, st.booleans())
def test_an_id_can_be_given_to_each_event_that_has_none(stream: bytes, bom: bool) -> None:
    written = b""
    expected = []
    blocks = SSEFramer().feed(b"\xef\xbb\xbf" * bom + stream)
    for number, block in enumerate(blocks):
        lacks = block.data is not None and block.id is None
        written += with_id(block.raw, f"s-{number}") if lacks else block.raw
        if block.data is not None:
            expected.append((block.data, block.event, f"s-{number}" if lacks else block.id))
    assert events(SSEFramer().feed(written)) == expected


@given(st.binary(max_size=50).filter(lambda data: b"\r" not in data), st.none() | st.just("ping"))
def test_an_event_is_written_as_it_will_be_read(data: bytes, event: str | None) -> None:
    assert events(SSEFramer().feed(write_event(data, "s-1", event))) == [(data, event, "s-1")]


@given(stream=streams, mark=st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_other_data_leaves_all_else_of_an_event_as_it_was(stream: bytes, mark: bytes) -> None:
    for block in SSEFramer().feed(mark + stream + b"\n\n"):
        if block.data is not None and b"\n" not in block.data:
            changed = with_data(block.raw, b"/new")
            (again,) = SSEFramer().feed(changed)
            assert again == replace(block, raw=changed, data=b"/new")
            lines, were = (raw.removeprefix(mark).splitlines(keepends=True) for raw in (changed, block.raw))
            assert [line for line in lines if not line.startswith(b"data")] == [
                line for line in were if not line.startswith(b"data")
            ]
