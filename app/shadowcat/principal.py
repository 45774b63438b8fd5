"""Whom a session belongs to, while the proxy itself authenticates nobody.

A claim read here is not verified: it says who *asks* to be let in, and the upstream decides. What is kept in
the store are digests, keyed with the session's id, never a credential.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import Self

import msgspec

from shadowcat.headers import Headers
from shadowcat.protocol import CHALLENGES
from shadowcat_stores import Session

ACCEPTED_KEPT = 8
"""How many accepted credentials a session remembers: a token is refreshed many times in a session's life."""

_OPAQUE = "key:"
"""What the principal begins with whose credentials say nothing of whose they are."""
_CHALLENGE = "?"
"""What begins an entry among a session's credentials that says when the upstream has asked for another."""
_CHALLENGE_HOLDS = 600.0
"""Seconds that its client has to get one: the user may have to log in."""


class _Claims(msgspec.Struct):
    iss: str
    sub: str


_claims = msgspec.json.Decoder(_Claims)


class Credentials:
    """What a request shows to be let in: the values of the credential headers, as they came."""

    __slots__ = ("values",)

    def __init__(self, values: Headers) -> None:
        self.values = values

    @classmethod
    def of(cls, headers: Headers, names: frozenset[bytes]) -> Self:
        """Return the credentials among the headers."""
        return cls([pair for pair in headers if pair[0] in names])

    def __bool__(self) -> bool:
        return bool(self.values)

    def digest(self, session_id: str) -> str:
        """Return what the store keeps of these credentials for this session."""
        key = session_id.encode()[:64]
        return blake2b(
            b"\0".join(b"%b:%b" % pair for pair in self.values), key=key, digest_size=16
        ).hexdigest()

    def principal(self, session_id: str) -> str:
        """Return whom they claim to speak for: the same for each token of one (`iss`, `sub`)."""
        if not self:
            return ""
        claims = self._claims()
        if claims is None:
            return _OPAQUE + self.digest(session_id)
        return "jwt:" + blake2b(msgspec.msgpack.encode(claims), digest_size=16).hexdigest()

    def _claims(self) -> _Claims | None:
        """Read issuer and subject where a bearer token is a JWT (RFC 7519); they are not verified."""
        for name, value in self.values:
            scheme, _, token = value.partition(b" ")
            if name == b"authorization" and scheme.lower() == b"bearer" and token.count(b".") == 2:
                payload = token.split(b".")[1].strip()
                try:
                    return _claims.decode(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
                except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    return None
        return None


def may_use(session: Session, credentials: Credentials, now: float) -> bool:
    """Return whether a request with these credentials may go to the upstream as part of the session.

    A session that was begun without credentials is open to whoever knows its id, and stays so: whoever came
    later with a credential would otherwise take it over. The session of a principal takes credentials that
    the upstream has accepted on it, or a JWT of the same issuer and subject, which the upstream judges. So it
    judges the next token of a session whose last one it has refused, where tokens say nothing of whose they
    are: nobody but the upstream could tell that this one was got for that challenge.
    """
    if not session.principal:
        return True
    if not credentials:
        return False
    return (
        credentials.digest(session.id) in session.credentials
        or (principal := credentials.principal(session.id)) == session.principal
        or (
            principal.startswith(_OPAQUE)
            and session.principal.startswith(_OPAQUE)
            and _is_challenged(session, now)
        )
    )


def with_accepted(session: Session, credentials: Credentials) -> Session:
    """Return the session with these credentials remembered as accepted by the upstream on it."""
    if not credentials or (digest := credentials.digest(session.id)) in session.credentials:
        return session
    accepted = [each for each in session.credentials if not each.startswith(_CHALLENGE)]
    return msgspec.structs.replace(session, credentials=(*accepted, digest)[-ACCEPTED_KEPT:])


def judged(session: Session, credentials: Credentials, status: int, headers: Headers, now: float) -> Session:
    """Return the session with what the upstream's answer to these credentials says of them."""
    if status < 300:
        return with_accepted(session, credentials)
    if status in CHALLENGES and any(name == b"www-authenticate" for name, _ in headers):
        return _with_challenge(session, credentials, now)
    return session


def _with_challenge(session: Session, credentials: Credentials, now: float) -> Session:
    """Return the session with its client asked for others than these, which were accepted on it."""
    if credentials.digest(session.id) not in session.credentials or _is_challenged(session, now):
        return session
    accepted = [each for each in session.credentials if not each.startswith(_CHALLENGE)]
    return msgspec.structs.replace(session, credentials=(*accepted, f"{_CHALLENGE}{now}")[-ACCEPTED_KEPT:])


def _is_challenged(session: Session, now: float) -> bool:
    newest = session.credentials[-1] if session.credentials else ""
    return newest.startswith(_CHALLENGE) and now - float(newest[1:]) < _CHALLENGE_HOLDS
