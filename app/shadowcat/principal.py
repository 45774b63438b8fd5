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
from shadowcat_stores import Session

ACCEPTED_KEPT = 8
"""How many accepted credentials a session remembers: a token is refreshed many times in a session's life."""


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
            return "key:" + self.digest(session_id)
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


def may_use(session: Session, credentials: Credentials) -> bool:
    """Return whether a request with these credentials may go to the upstream as part of the session.

    A session that was begun without credentials is open to whoever knows its id, and stays so: whoever came
    later with a credential would otherwise take it over. The session of a principal takes credentials that
    the upstream has accepted on it, or a JWT of the same issuer and subject, which the upstream judges.
    """
    if not session.principal:
        return True
    if not credentials:
        return False
    return (
        credentials.digest(session.id) in session.credentials
        or credentials.principal(session.id) == session.principal
    )


def with_accepted(session: Session, credentials: Credentials) -> Session:
    """Return the session with these credentials remembered as accepted by the upstream on it."""
    if not credentials or (digest := credentials.digest(session.id)) in session.credentials:
        return session
    return msgspec.structs.replace(
        session,
        credentials=(*session.credentials, digest)[-ACCEPTED_KEPT:],
    )
