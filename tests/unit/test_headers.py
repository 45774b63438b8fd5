"""Which headers pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowcat.headers import HOP_BY_HOP, accepts, end_to_end, media_type, unsendable

names = st.sampled_from([b"accept", b"x-a", b"x-b", b"connection", b"te", b"set-cookie", b"keep-alive"])
values = st.sampled_from([b"", b"1", b"x-a", b"close, X-B", b" x-a , te"])


@given(st.lists(st.tuples(names, values)))
def test_order_and_repetitions_stay_and_hop_by_hop_goes(headers: list[tuple[bytes, bytes]]) -> None:
    listed = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    assert end_to_end(headers) == [
        (name, value) for name, value in headers if name not in HOP_BY_HOP and name not in listed
    ]


def test_more_can_be_dropped() -> None:
    assert end_to_end([(b"host", b"a"), (b"x", b"b")], HOP_BY_HOP | {b"host"}) == [(b"x", b"b")]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, b""),
        (b"Text/Event-Stream;charset=utf-8", b"text/event-stream"),
        (b" application/json ", b"application/json"),
    ],
)
def test_media_types(value: bytes | None, kind: bytes) -> None:
    assert media_type(value) == kind


@pytest.mark.parametrize(
    ("value", "admitted"),
    [
        (b"application/json", True),
        (b"APPLICATION/JSON; q=0.5", True),
        (b"text/html, */*;q=0.1", True),
        (b"application/*", True),
        (b"text/*", False),
        (b"application/json;q=0", False),
        (b"*/*;q=0.0", False),
        (b"", False),
    ],
)
def test_accept(value: bytes, admitted: bool) -> None:
    assert accepts(value, b"application/json") is admitted


@pytest.mark.parametrize(
    ("pair", "at_fault"),
    [
        ((b"x-a", b"b\r\nhost: evil"), "'x-a'"),
        ((b"x-b", b"\0"), "'x-b'"),
        ((b"x-c", b"\x0c"), "'x-c'"),
        ((b"x y", b""), "'x y'"),
        ((b"\xe9\n", b""), "'\\xe9\\n'"),
        ((b"", b""), "''"),
        ((b"x-d", b"\t caf\xe9 "), None),
    ],
)
def test_the_header_that_cannot_be_sent_is_named(pair: tuple[bytes, bytes], at_fault: str | None) -> None:
    assert unsendable([(b"host", b"a:1"), pair]) == at_fault
