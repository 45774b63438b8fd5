"""The sessions of traffic without a session: remembered within bounds, and without a credential."""

from __future__ import annotations

import pytest

from shadowcat import ambient
from shadowcat.ambient import AmbientSessions, is_ambient
from shadowcat.counters import Counters
from shadowcat.principal import Credentials
from shadowcat.settings import Settings
from shadowcat_stores import MemoryStore


def credentials(token: str) -> Credentials:
    return Credentials([(b"authorization", token.encode())])


def test_it_remembers_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ambient, "_KEPT", 2)
    sessions = AmbientSessions(MemoryStore(), Settings(), Counters())
    ids = [sessions.accept("default", credentials(token)) for token in "abc"]
    assert len(set(ids)) == 3
    assert [sessions.find("default", credentials(token)) for token in "abc"] == [None, *ids[1:]]
    assert sessions.accept("default", credentials("a")) == ids[0]


def test_a_credential_is_known_for_its_upstream_only() -> None:
    sessions = AmbientSessions(MemoryStore(), Settings(), Counters())
    session_id = sessions.accept("one", credentials("a"))
    assert is_ambient(session_id)
    assert sessions.find("one", credentials("a")) == session_id
    assert sessions.find("two", credentials("a")) is None
    assert sessions.find("one", credentials("b")) is None


def test_two_processes_come_to_the_same_id() -> None:
    one, two = (AmbientSessions(MemoryStore(), Settings(), Counters()) for _ in range(2))
    assert one.accept("default", credentials("a")) == two.accept("default", credentials("a"))
    assert one.accept("default", Credentials([])) == two.accept("default", Credentials([]))


def test_no_credential_can_be_read_from_what_is_kept() -> None:
    sessions = AmbientSessions(MemoryStore(), Settings(), Counters())
    sessions.accept("default", credentials("Bearer secret"))
    assert "secret" not in str(vars(sessions))
