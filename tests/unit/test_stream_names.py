"""Streams' names and the ids made of them, whatever clients send back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowcat.stream_names import answer_name, asked_by, get_name, minted, read_minted
from shadowcat_stores import JsonRpcId

ids = st.integers(-(2**53), 2**53) | st.text() | st.floats(allow_nan=False, allow_infinity=False)


@given(ids, st.integers(0, 999_999_999))
def test_a_name_and_a_number_come_back_from_their_id(request_id: JsonRpcId, position: int) -> None:
    for name in (answer_name([request_id]), answer_name([1, 2]), get_name()):
        event_id = minted(name, position)
        assert read_minted(event_id) == (name, position)
        assert event_id.isascii()
        assert event_id.isprintable()
        assert len(event_id) <= 54


@given(ids)
def test_a_short_request_id_is_in_the_name(request_id: JsonRpcId) -> None:
    known = asked_by(answer_name([request_id]))
    assert known == request_id or (known is None and len(str(request_id)) > 3)


@pytest.mark.parametrize("request_id", [0, -1, "", "a-1", "ä", 1.5, "x" * 22])
def test_it_is_of_the_same_kind(request_id: JsonRpcId) -> None:
    known = asked_by(answer_name([request_id]))
    assert (type(known), known) == (type(request_id), request_id)


@pytest.mark.parametrize("request_id", ["x" * 23, None, math.inf])
def test_what_is_long_or_no_id_is_not(request_id: JsonRpcId) -> None:
    assert asked_by(answer_name([request_id])) is None


def test_a_batch_has_no_id() -> None:
    assert asked_by(answer_name([1, 2])) is None
    assert asked_by(answer_name([])) is None


@given(st.text() | st.from_regex(r"s\.[\w-]{8}\.[\w-]{1,32}", fullmatch=True))
def test_what_clients_make_up_is_no_trouble(name: str) -> None:
    asked_by(name)
    read_minted(name)
    read_minted(f"{name}-1")
