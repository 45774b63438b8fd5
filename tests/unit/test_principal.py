"""Whom a session belongs to."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shadowcat.principal import ACCEPTED_KEPT, Credentials, judged, may_use, with_accepted
from shadowcat_stores import Session

SESSION = Session(id="s", created_at=0, expires_at=1)
NOW = 1000.0
NAMES = frozenset({b"authorization"})


def bearer(token: bytes) -> Credentials:
    return Credentials.of([(b"accept", b"*/*"), (b"authorization", b"Bearer " + token)], NAMES)


def jwt(payload: object) -> bytes:
    return b"e30." + base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=") + b".sig"


def test_a_session_belongs_to_who_began_it() -> None:
    alice, nobody = bearer(b"alice"), Credentials([])
    assert may_use(SESSION, alice, NOW)
    assert may_use(SESSION, nobody, NOW)
    assert may_use(with_accepted(SESSION, alice), nobody, NOW)  # begun without credentials, and so it stays
    begun = msgspec.structs.replace(SESSION, principal=alice.principal("s"))
    bound = with_accepted(begun, alice)
    assert may_use(bound, alice, NOW)
    assert not may_use(bound, bearer(b"bob"), NOW)
    assert not may_use(bound, nobody, NOW)
    assert with_accepted(bound, nobody) is bound
    assert with_accepted(bound, alice) is bound


CHALLENGE = [(b"www-authenticate", b'Bearer error="insufficient_scope"')]


def test_a_token_that_the_upstream_has_asked_for_may_be_tried_and_then_no_more() -> None:
    old, new, bob = bearer(b"old"), bearer(b"new"), bearer(b"bob")
    session = with_accepted(msgspec.structs.replace(SESSION, principal=old.principal("s")), old)
    for status, headers in ((401, []), (200, CHALLENGE), (404, CHALLENGE)):
        assert not may_use(judged(session, old, status, headers, NOW), new, NOW)
    assert judged(session, bob, 401, CHALLENGE, NOW) is session  # nobody can ask for it in the client's stead
    asked = judged(session, old, 403, CHALLENGE, NOW)
    assert may_use(asked, new, NOW + 599)
    assert not may_use(asked, new, NOW + 600)
    assert not may_use(asked, Credentials([]), NOW)
    assert may_use(asked, old, NOW)
    assert judged(asked, old, 401, CHALLENGE, NOW + 599) is asked
    assert may_use(judged(asked, old, 401, CHALLENGE, NOW + 600), new, NOW + 600)
    assert judged(asked, new, 401, CHALLENGE, NOW) is asked
    found = judged(asked, new, 200, [], NOW)
    assert may_use(found, new, NOW)
    assert may_use(found, old, NOW)
    assert not may_use(found, bob, NOW)


def test_a_token_that_says_whose_it_is_stays_its_owners() -> None:
    alice, bob = (bearer(jwt({"iss": "i", "sub": name})) for name in ("alice", "bob"))
    session = with_accepted(msgspec.structs.replace(SESSION, principal=alice.principal("s")), alice)
    asked = judged(session, alice, 401, CHALLENGE, NOW)
    assert not may_use(asked, bob, NOW)
    assert not may_use(asked, bearer(b"opaque"), NOW)


def test_digests_differ_by_session_and_tell_nothing() -> None:
    alice = bearer(b"alice")
    assert alice.digest("s") != alice.digest("t")
    assert b"alice" not in msgspec.json.encode(with_accepted(SESSION, alice))


def test_only_the_newest_accepted_credentials_are_kept() -> None:
    session = msgspec.structs.replace(SESSION, principal=bearer(jwt({"iss": "i", "sub": "s"})).principal("s"))
    for number in range(20):
        session = with_accepted(session, bearer(jwt({"iss": "i", "sub": "s", "jti": number})))
    assert len(session.credentials) == ACCEPTED_KEPT
    assert may_use(session, bearer(jwt({"iss": "i", "sub": "s"})), NOW)


DEEP = b"e30." + base64.urlsafe_b64encode(b'{"iss":"i","x":' + b"[" * 5000 + b"]" * 5000 + b"}") + b".sig"


@pytest.mark.parametrize(
    "token",
    [
        b"a.b",
        b"a.b.c",
        b"a.!.c",
        b"a.e30.c",
        b"a.bnVsbA.c",
        jwt({"iss": 1, "sub": "s"}),
        jwt({"iss": "i"}),
        b"",
    ],
)
def test_a_token_that_is_no_jwt_stands_for_itself(token: bytes) -> None:
    assert bearer(token).principal("s").startswith("key:")
    assert bearer(token).principal("s") != bearer(token + b"x").principal("s")


def test_other_schemes_stand_for_themselves() -> None:
    basic = Credentials([(b"authorization", b"Basic " + jwt({"iss": "i", "sub": "s"}))])
    assert basic.principal("s").startswith("key:")


@given(st.text(), st.text(), st.text(), st.text())
@example("a\0", "b", "a", "\0b")
def test_principals_are_equal_for_equal_subjects_only(iss: str, sub: str, iss2: str, sub2: str) -> None:
    one, two = bearer(jwt({"iss": iss, "sub": sub})), bearer(jwt({"iss": iss2, "sub": sub2, "exp": 5}))
    assert (one.principal("s") == two.principal("s")) is ((iss, sub) == (iss2, sub2))


@given(st.binary(max_size=50))
def test_any_token_is_read(token: bytes) -> None:
    assert bearer(token).principal("s")
