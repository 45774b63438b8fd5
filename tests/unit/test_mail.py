"""What replicas write to each other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowcat.mail import Cancel, Leave, Listen, Mail, read

IDS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
MAIL = (
    st.builds(Listen, st.text(), st.text(), st.text(), st.text(), st.floats(0, 1e11), st.none() | st.text())
    | st.builds(Leave, st.text())
    | st.builds(Cancel, st.text(), st.text(), IDS)
)


@given(MAIL)
def test_it_comes_as_it_was_written(mail: Mail) -> None:
    assert read(msgspec.json.encode(mail)) == mail


@given(st.binary() | MAIL.map(lambda mail: msgspec.json.encode(mail)[:-1]))
def test_what_is_no_mail_is_none(raw: bytes) -> None:
    assert read(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"of another version","listener":"l"}',
        b'{"type":"leave"}',
        b'{"type":"leave","listener":1}',
        b"[" * 100_000,
        b'{"type":"leave","listener":"\xff"}',
        b'{"listener":"l"}',
    ],
)
def test_what_another_version_writes_is_none(raw: bytes) -> None:
    assert read(raw) is None
