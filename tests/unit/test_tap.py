"""Numbering a stream's events: many at once as one by one, wherever the chunks were cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shadowcat.envelope import read_server_messages
from shadowcat.readers import Arrival, Notice, may_matter
from shadowcat.sse import SSEFramer, SSERun
from shadowcat.tap import EventTap, Taken

NOTICE = b'{"jsonrpc":"2.0","method":"notifications/message"}'
messages = st.sampled_from(
    [
        NOTICE,
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"id"}}',
        b'{"jsonrpc":"2.0","method":"ping","id":"s-1"}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":"no"}}',
        b'{"jsonrpc":"2.0","\\u0069d":1,"\\u0072esult":{}}',
        b'[{"jsonrpc":"2.0","id":2,"result":{}}]',
        b"{}",
        b"{ no JSON",
        b"",
    ]
)
before = st.sampled_from(
    [b"", b"event: message\n", b"event:50%\n", b"id: 7\n", b"id:\n", b"retry: 5\n", b": x\n"]
)
spaces = st.sampled_from([b"data: ", b"data:", b"data:  "])
ends = st.sampled_from([b"\n\n", b"\n\n\n", b"\ndata: more\n\n", b"\n: end\n\n"])
events = st.tuples(before, spaces, messages, ends).map(b"".join)
runs = st.tuples(events, st.integers(1, 5)).map(lambda event: event[0] * event[1])


class OneByOne(SSEFramer):
    """Knows of no runs."""

    def feed_run(self, chunk: bytes) -> SSERun | None:
        return None


def seen(taken: Taken) -> list[tuple[Any, ...]]:
    """What the tape gets, read."""
    return [
        (
            each.position,
            each.event,
            each.event_id,
            [each.message] if isinstance(each, Notice) else each.messages,
        )
        for each in taken.arrivals
    ]


def tap_of(explicit: bool) -> EventTap:
    return EventTap("s.abc", 10_000, [1, 2], explicit=explicit)


@given(
    st.lists(runs, max_size=6).map(b"".join),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 500), max_size=8),
)
@example((b"data: " + NOTICE + b"\n\n") * 3, False, False, [10])
def test_many_at_once_are_numbered_as_one_by_one(
    stream: bytes, crlf: bool, explicit: bool, cuts: list[int]
) -> None:
    if crlf:
        stream = stream.replace(b"\n", b"\r\n")
    at = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    tap, slow = tap_of(explicit), tap_of(explicit)
    slow._framer = OneByOne(10_000)
    for start, end in pairwise(at):
        taken, expected = tap.feed(stream[start:end]), slow.feed(stream[start:end])
        assert taken.data == expected.data
        assert seen(taken) == seen(expected)
        assert (tap.newest, tap.unanswered, tap.upstream_id) == (
            slow.newest,
            slow.unanswered,
            slow.upstream_id,
        )


def test_a_run_is_not_read() -> None:
    taken = tap_of(False).feed((b"data: " + NOTICE + b"\n\n") * 2 + b"data: ")
    assert taken.data == b"id: s.abc-1\ndata: %b\n\nid: s.abc-2\ndata: %b\n\n" % (NOTICE, NOTICE)
    assert taken.arrivals == [Notice(NOTICE, 1, None, None), Notice(NOTICE, 2, None, None)]


def test_of_a_run_only_what_may_be_awaited_is_read() -> None:
    tap = tap_of(False)
    answer = b'{"jsonrpc":"2.0","id":1,"result":{}}'
    taken = tap.feed(
        b"event: message\r\ndata: %b\r\n\r\nevent: message\r\ndata: %b\r\n\r\n" % (NOTICE, answer)
    )
    assert taken.arrivals == [
        Notice(NOTICE, 1, "message", None),
        Arrival(read_server_messages(answer), 2, "message", None),
    ]
    assert tap.unanswered == {2}


def test_an_event_that_begins_in_one_chunk_and_ends_in_a_larger_one_is_of_the_run() -> None:
    tap = tap_of(False)
    event = b"data: " + NOTICE + b"\n\n"
    assert tap.feed(event[:20]).arrivals == []
    taken = tap.feed(event[20:] + event)
    assert [type(each) for each in taken.arrivals] == [Notice, Notice]
    assert tap.feed(event).arrivals == [Notice(NOTICE, 3, None, None)]


def _escaped(text: str) -> bytes:
    return ('"' + "".join(f"\\u{ord(each):04x}" for each in text) + '"').encode()


@given(
    st.sampled_from(["id", "result", "error"]),
    st.booleans(),
    st.sampled_from([b'{"jsonrpc":"2.0",%b:1}', b'{"jsonrpc":"2.0","method":"m", %b : 1 }']),
)
def test_what_may_be_a_request_or_an_answer_is_never_overlooked(
    name: str, escaped: bool, form: bytes
) -> None:
    raw = form % (_escaped(name) if escaped else json.dumps(name).encode())
    assert may_matter(raw)


@pytest.mark.parametrize("raw", [NOTICE, b"{}", b'{"jsonrpc":"2.0","method":"m","params":{"ids":[1]}}'])
def test_notifications_are_told_by_their_bytes(raw: bytes) -> None:
    assert not may_matter(raw)
    (message,) = read_server_messages(raw)
    assert message.kind in ("notification", "other")
