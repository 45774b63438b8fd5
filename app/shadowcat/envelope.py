"""Reads the outside of JSON-RPC messages from raw bytes. Params and results are not interpreted.

The bytes that are forwarded are always those that came: what is read here is a copy, so a message that
this reader cannot follow (nested deeper than it dares to go) is of kind `other` and still passes.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from shadowcat.errors import NotJSON, NotJSONRPC
from shadowcat.protocol import META_PROTOCOL_VERSION
from shadowcat_stores import JsonRpcId, Kind, MessageEnvelope

_ABSENT: Final = Raw(b"null")


class _Outside(msgspec.Struct):
    """The members that say what a message is. A struct of few fields skips the rest unread (0.3 µs)."""

    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET
    id: int | float | str | UnsetType | None = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Params(msgspec.Struct, rename="camel"):
    """The params that stand in headers as well."""

    name: Raw = _ABSENT
    uri: Raw = _ABSENT
    task_id: Raw = _ABSENT
    meta: Raw = msgspec.field(name="_meta", default=_ABSENT)


class _WithParams(msgspec.Struct):
    params: _Params = msgspec.field(default_factory=_Params)


class _Lenient(msgspec.Struct):
    params: dict[str, Any] = {}


_MEMBERS: Final = dict(zip(_Params.__struct_fields__, _Params.__struct_encode_fields__, strict=True))
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Meta(msgspec.Struct):
    version: Raw = msgspec.field(name=META_PROTOCOL_VERSION, default=_ABSENT)


MOST_IN_BATCH = 1000
"""Messages in one batch: each is read and recorded by itself, while everybody else waits."""

_outside = msgspec.json.Decoder(_Outside)
_batch = msgspec.json.Decoder(list[Raw])
_with_params = msgspec.json.Decoder(_WithParams)
_meta = msgspec.json.Decoder(_Meta)
_text = msgspec.json.Decoder(str)


def read_envelopes(body: bytes) -> list[MessageEnvelope]:
    """Return the body's message, or its messages where it is a batch.

    https://www.jsonrpc.org/specification#batch; batches are of MCP revision 2025-03-26 only.

    Raises:
        NotJSON: the body is no JSON.
        NotJSONRPC: it is JSON, and no JSON-RPC 2.0 message; or an empty batch.
    """
    if body.startswith(b"{") or not body.lstrip(b" \t\r\n").startswith(b"["):
        return [_read(body)]
    try:
        parts = _batch.decode(body)
    except RecursionError:
        return [MessageEnvelope(body, "other")]
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = _lenient(body)
        # Written anew only where they are few: the loop waits for it.
        parts = [Raw(json.dumps(each).encode()) for each in found[: MOST_IN_BATCH + 1]]
    if not 0 < len(parts) <= MOST_IN_BATCH:
        raise NotJSONRPC(
            f"A batch has 1 to {MOST_IN_BATCH} JSON-RPC messages, not {len(parts)}: send others apart."
        )
    return [_read(bytes(part)) for part in parts]


def read_server_messages(data: bytes) -> list[MessageEnvelope]:
    """Return what the server sent as messages; as one of kind `other` where it is no JSON-RPC."""
    try:
        return read_envelopes(data)
    except (NotJSON, NotJSONRPC):
        return [MessageEnvelope(data, "other")]


def stated_version(raw: bytes) -> str | None:
    """Return the protocol revision that the message's `_meta` names, as stateless revisions demand."""
    return stated(raw, None)[0]


def stated(raw: bytes, param: str | None) -> tuple[str | None, str | None]:
    """Return the revision that the message's `_meta` names, and the text of one of its params.

    Args:
        raw: the message.
        param: `name`, `uri` or `task_id`.
    """
    params = _params(raw)
    try:
        version = _text_of(_meta.decode(params.meta).version)
    except _UNREADABLE:
        version = None
    return version, None if param is None else _text_of(getattr(params, param))


def _params(raw: bytes) -> _Params:
    try:
        return _with_params.decode(raw).params
    except (msgspec.ValidationError, RecursionError):
        return _Params()
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # again, as `_second_opinion` does: what is hidden behind a lone surrogate would not be found
        given = msgspec.convert(_lenient(raw), _Lenient).params
    except (NotJSON, msgspec.ValidationError):
        return _Params()
    return _Params(
        **{
            name: Raw(json.dumps(given[member]).encode())
            for name, member in _MEMBERS.items()
            if member in given
        }
    )


def _text_of(raw: Raw) -> str | None:
    try:
        return _text.decode(raw)
    except _UNREADABLE:
        return None


class _Cancelled(msgspec.Struct, rename="camel"):
    request_id: int | float | str


class _WithCancelled(msgspec.Struct):
    params: _Cancelled


def cancelled_id(raw: bytes) -> JsonRpcId:
    """Return the id of the request that this `notifications/cancelled` gives up."""
    try:
        return _storable(msgspec.json.decode(raw, type=_WithCancelled).params.request_id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read(raw: bytes) -> MessageEnvelope:
    try:
        outside = _outside.decode(raw)
    except RecursionError:
        return MessageEnvelope(raw, "other")
    except msgspec.ValidationError as exc:
        raise NotJSONRPC(f"The body is no JSON-RPC 2.0 message: {exc}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        outside = _second_opinion(raw)
    kind, method, message_id = _classify(outside)
    return MessageEnvelope(raw, kind, method, message_id)


def _classify(outside: _Outside) -> tuple[Kind, str | None, JsonRpcId]:
    message_id = None if outside.id is UNSET else _storable(outside.id)
    if outside.method is not UNSET:
        method = _encodable(outside.method)
        return ("notification" if outside.id is UNSET else "request"), method, message_id
    if (outside.result is UNSET) == (outside.error is UNSET):
        raise NotJSONRPC("The body is no JSON-RPC 2.0 message: it needs a method, a result or an error.")
    return ("error" if outside.result is UNSET else "response"), None, message_id


def _storable(message_id: JsonRpcId) -> JsonRpcId:
    """Return the id, as text where it is an integer of more than 64 bits: stores keep no larger ones."""
    if isinstance(message_id, int) and not -(2**63) <= message_id < 2**64:
        return str(message_id)
    return _encodable(message_id) if isinstance(message_id, str) else message_id


def _encodable(text: str) -> str:
    """Return the text with lone surrogates escaped: no store and no answer of ours could carry them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _second_opinion(raw: bytes) -> _Outside:
    """Read again what the fast reader refused: it also refuses lone surrogates, which JSON allows."""
    value = _lenient(raw)
    try:
        known = {name: value[name] for name in ("jsonrpc", "method", "id") if name in value}
        known |= {name: Raw(b"") for name in ("result", "error") if name in value}
        return msgspec.convert(known, _Outside)
    except (msgspec.ValidationError, TypeError) as exc:
        raise NotJSONRPC(f"The body is no JSON-RPC 2.0 message: {exc}") from None


def _lenient(raw: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        raise NotJSON(f"The body is no JSON: {exc}") from None
