"""Who else records a session."""

from __future__ import annotations

from collections.abc import Sequence

from shadowcat.turns import Turns
from shadowcat_stores import Frame, MessageEnvelope
from shadowcat_stores.testing import FakeClock


def frames(*session_ids: str) -> Sequence[Frame]:
    envelope = MessageEnvelope(b"{}", "other")
    return [
        Frame(session_id=session_id, direction="server", envelope=envelope, at=0)
        for session_id in session_ids
    ]


def alone(clock: FakeClock) -> Turns:
    turns = Turns(monotonic=clock)
    turns.wrote(frames("s"), [1])
    clock.advance(0.9)
    turns.wrote(frames("s"), [2])
    assert not turns.is_alone("s")
    clock.advance(0.2)
    turns.wrote(frames("s"), [3])
    return turns


def test_an_unknown_session_may_be_anyones() -> None:
    assert not Turns().is_alone("s")


def test_a_second_without_anybody_elses_frame_is_alone() -> None:
    assert alone(FakeClock()).is_alone("s")


def test_a_frame_of_somebody_elses_ends_it() -> None:
    turns = alone(clock := FakeClock())
    clock.advance(0.1)
    turns.wrote(frames("s"), [5])
    assert not turns.is_alone("s")


def test_a_pause_ends_it() -> None:
    turns = alone(clock := FakeClock())
    clock.advance(1)
    assert not turns.is_alone("s")


def test_a_frame_that_was_not_stored_says_nothing() -> None:
    turns = alone(FakeClock())
    turns.wrote(frames("s", "gone"), [0, 0])
    assert turns.is_alone("s")


def test_sessions_in_one_batch_are_told_apart() -> None:
    turns = alone(FakeClock())
    turns.wrote(frames("s", "other", "s"), [4, 9, 5])
    assert turns.is_alone("s")
    assert not turns.is_alone("other")


def test_it_remembers_a_bounded_number_of_sessions() -> None:
    turns = alone(FakeClock())
    turns.wrote(frames(*(f"s-{number}" for number in range(10_000))), [1] * 10_000)
    assert not turns.is_alone("s")
    assert len(turns._known) == 10_000
