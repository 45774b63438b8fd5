"""Which revisions are which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowcat.protocol import STATELESS_SINCE, WITH_SESSIONS, is_stateless


@pytest.mark.parametrize(
    "version", ["2026-07-28", "2027-01-01", "2999-12-31", "DRAFT-2026-v1", "DRAFT-2027-v12"]
)
def test_later_dates_and_drafts_are_stateless(version: str) -> None:
    assert is_stateless(version)


@pytest.mark.parametrize(
    "version",
    [
        "",
        "banana",
        "2026-07-27",
        "2026-7-28",
        "2026-07-28x",
        "DRAFT",
        "draft-2026-v1",
        "DRAFT-2026-v",
        *sorted(WITH_SESSIONS),
    ],
)
def test_anything_else_is_not(version: str) -> None:
    assert not is_stateless(version)


@given(st.dates().map(str))
def test_dates_compare(version: str) -> None:
    assert is_stateless(version) == (version >= STATELESS_SINCE)


@given(st.text(st.characters(exclude_categories=("Nd", "Lu"))))
def test_no_other_text_is_stateless(version: str) -> None:
    assert not is_stateless(version)
