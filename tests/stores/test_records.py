"""The records as such: they are plain, frozen, and can be turned into bytes and back."""

import msgspec
import pytest
from hypothesis import given

from shadowcat_stores import Frame, MessageEnvelope, Session, SessionPage, StoreLimits, StreamClaim, Window
from shadowcat_stores.testing.whole import FRAMES, SESSIONS


@given(SESSIONS)
def test_a_session_survives_encoding(session: Session) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(session), type=Session) == session


@given(FRAMES)
def test_a_frame_survives_encoding(frame: Frame) -> None:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Frame)
    assert decoded == frame
    assert type(decoded.envelope.id) is type(frame.envelope.id)


def test_a_record_of_an_older_version_still_decodes() -> None:
    oldest = msgspec.msgpack.encode({"id": "s", "created_at": 1.0, "expires_at": 2.0})
    assert msgspec.msgpack.decode(oldest, type=Session) == Session(id="s", created_at=1.0, expires_at=2.0)


def test_a_record_of_a_newer_version_still_decodes() -> None:
    newer = msgspec.msgpack.encode({"id": "s", "created_at": 1.0, "expires_at": 2.0, "mood": "good"})
    assert msgspec.msgpack.decode(newer, type=Session).id == "s"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (MessageEnvelope(raw=b"{}", kind="request"), "raw"),
        (Frame(session_id="s", direction="client", envelope=MessageEnvelope(b"", "other"), at=1.0), "seq"),
        (Session(id="s", created_at=1.0, expires_at=2.0), "revision"),
        (Window(), "frames"),
        (StoreLimits(), "sessions"),
        (SessionPage([]), "cursor"),
        (StreamClaim(owner="o", token=1, expires_at=1.0), "token"),
    ],
)
def test_records_are_frozen(record: object, name: str) -> None:
    with pytest.raises(AttributeError, match="immutable"):
        setattr(record, name, None)


def test_new_records_share_no_labels() -> None:
    one, other = (Session(id=each, created_at=1.0, expires_at=2.0) for each in "ab")
    one.labels["a"] = "1"
    assert other.labels == {}
