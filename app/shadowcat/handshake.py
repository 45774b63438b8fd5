"""What client and server say of themselves when a session begins, and what of it is kept in the session."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from shadowcat.inbound import ClientRequest
from shadowcat.protocol import is_stateless
from shadowcat_stores import MessageEnvelope, Session

_KEPT_JSON: Final = 16 * 1024
"""Bytes of `initialize` params and of `serverInfo` that a session keeps: more is no honest handshake."""


class _Params(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw(b"")


class InitializeResult(msgspec.Struct, rename="camel"):
    """What a server says of itself. `b""` stands for what it does not say."""

    protocol_version: str | None = None
    server_info: msgspec.Raw = msgspec.Raw(b"")
    capabilities: msgspec.Raw = msgspec.Raw(b"")


class _InitializeAnswer(msgspec.Struct):
    result: InitializeResult


def is_initialize(request: ClientRequest) -> bool:
    """Return whether the request is the handshake's first."""
    messages = request.messages
    return len(messages) == 1 and messages[0].kind == "request" and messages[0].method == "initialize"


def begins_session(request: ClientRequest) -> bool:
    """Return whether the request begins a session where it names none."""
    return is_initialize(request) and not is_stateless(request.protocol_version)


def _read_params(request: ClientRequest) -> msgspec.Raw:
    try:
        return msgspec.json.decode(request.body, type=_Params).params
    except msgspec.DecodeError:
        return msgspec.Raw(b"")


def with_offer(session: Session, request: ClientRequest) -> Session:
    """Return the session with what the client's `initialize` says."""
    return replace(session, initialize=_at_most(bytes(_read_params(request))))


def with_answer(session: Session, answer: MessageEnvelope | None) -> Session:
    """Return the session with what the answer to `initialize` says."""
    result = read_result(answer)
    return replace(
        session,
        protocol_version=result.protocol_version,
        server_info=_at_most(bytes(result.server_info)),
        server_capabilities=_at_most(bytes(result.capabilities)),
    )


def read_result(answer: MessageEnvelope | None) -> InitializeResult:
    """Return what the answer to `initialize` says; nothing of it where it cannot be read."""
    try:
        return msgspec.json.decode(b"" if answer is None else answer.raw, type=_InitializeAnswer).result
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return InitializeResult()


def _at_most(raw: bytes) -> bytes:
    return raw if len(raw) <= _KEPT_JSON else b""
