"""What can go wrong, and what the client is told.

    ShadowcatError
    ├── ClientError                  the request cannot be forwarded; nothing was sent upstream
    │   ├── NotJSON                  400   the body is no JSON
    │   ├── NotJSONRPC               400   the body is no JSON-RPC message
    │   ├── RepeatedHeader           400   a header that decides stands twice
    │   ├── UnsendableRequest        400   a header has what none may have
    │   ├── HeaderMismatch           400   a header says something else than the body
    │   ├── SessionRequired          400   no Mcp-Session-Id
    │   ├── EventUnknown             400   a Last-Event-ID of ours that the tape does not know any more
    │   ├── ForbiddenOrigin          403   Origin or Host is not one of ours
    │   ├── SessionUnknown           404   unknown, expired, or somebody else's: the same answer
    │   ├── NotAcceptable            406   Accept excludes what the protocol answers with
    │   ├── BodyTooLarge             413
    │   └── UnsupportedMediaType     415   Content-Type or Content-Encoding
    ├── UpstreamError                the upstream's fault
    │   ├── UpstreamUnreachable      502   nothing was sent
    │   ├── UpstreamConnectTimeout   504   nothing was sent
    │   ├── UpstreamBusy             503   all connections we allow are in use; nothing was sent
    │   ├── AmbiguousDelivery        502   it was sent, and no answer came
    │   │   └── UpstreamTimeout      504   … within the time allowed
    │   ├── RestoreFailed            502   it has forgotten the session, and cannot begin it anew for now
    │   └── UpstreamBroke            the response ended half way; it has begun, so no status can say it
    ├── Stopping                     503   the proxy stops; nothing was lost
    ├── StoreDown                    503   the session cannot be looked up or stored
    └── NotStarted                   500   the host did not enter the lifespan

A client error never follows from upstream trouble: clients read a 400, 404 or 405 as a lost session or as
an answer to their probing for protocol revisions.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import msgspec

from shadowcat.protocol import (
    AMBIGUOUS_DELIVERY,
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
)
from shadowcat_stores import JsonRpcId


class ShadowcatError(Exception):
    """The root: an answer of the proxy's own. `str(error)` is what the client reads; it names the remedy."""

    status: ClassVar[int] = 500
    code: ClassVar[int] = INTERNAL_ERROR
    level: ClassVar[int] = logging.WARNING
    retry_after: ClassVar[int | None] = None
    """Seconds, for the `Retry-After` header."""
    reason: ClassVar[str] = "internal"
    """A stable word for `error.data.reason`."""

    def message(self, request_id: JsonRpcId = None) -> bytes:
        """Return the JSON-RPC error that answers the request with this id."""
        error = {"code": self.code, "message": str(self), "data": {"reason": self.reason}}
        return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "error": error})


class ClientError(ShadowcatError):
    """The request cannot be forwarded. Nothing was sent upstream."""

    status = 400
    code = INVALID_REQUEST
    level = logging.INFO


class NotJSON(ClientError):
    """The body is no JSON."""

    code = PARSE_ERROR
    reason = "not_json"


class NotJSONRPC(ClientError):
    """The body is JSON, and no JSON-RPC 2.0 message or batch."""

    reason = "not_json_rpc"


class RepeatedHeader(ClientError):
    """A header that must stand once stands twice: proxy and upstream might each read another one."""

    reason = "repeated_header"


class UnsendableRequest(ClientError):
    """A header has what none may have, such as a line end, and cannot be sent on."""

    reason = "unsendable_request"


class HeaderMismatch(ClientError):
    """`MCP-Protocol-Version`, `Mcp-Method` or `Mcp-Name` says something else than the body (2026-07-28)."""

    code = HEADER_MISMATCH
    reason = "header_mismatch"


class SessionRequired(ClientError):
    """The request belongs to a session and names none."""

    reason = "session_required"


class EventUnknown(ClientError):
    """`Last-Event-ID` is of the proxy's making and not, or not any more, on the session's tape."""

    reason = "event_unknown"

    def __init__(self) -> None:
        super().__init__(
            "The event that Last-Event-ID names is not known any more, so its stream cannot be resumed. What "
            "it was to answer may have been processed: check before you send it again."
        )


class ForbiddenOrigin(ClientError):
    """`Origin` or `Host` is not allowed here."""

    status = 403
    reason = "forbidden_origin"


class SessionUnknown(ClientError):
    """The session is unknown, has expired, was deleted, or is somebody else's: which, is not said."""

    status = 404
    reason = "session_unknown"

    def __init__(self) -> None:
        super().__init__("Session not found. Start a new one with initialize.")


class NotAcceptable(ClientError):
    """`Accept` excludes what the protocol answers with."""

    status = 406
    reason = "not_acceptable"


class BodyTooLarge(ClientError):
    """The request body is larger than `max_body_bytes`."""

    status = 413
    reason = "body_too_large"


class UnsupportedMediaType(ClientError):
    """The request body is not `application/json` as it stands."""

    status = 415
    reason = "unsupported_media_type"


class UpstreamError(ShadowcatError):
    """The upstream's fault."""

    status = 502
    reason = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """No connection to the upstream. Nothing was sent, so the client may send the request again."""

    reason = "upstream_unreachable"


class UpstreamConnectTimeout(UpstreamError):
    """The upstream did not take the connection in time. Nothing was sent."""

    status = 504
    reason = "upstream_connect_timeout"


class UpstreamBusy(UpstreamError):
    """Every connection to the upstream that `max_connections` allows is in use. Nothing was sent."""

    status = 503
    retry_after = 1
    reason = "upstream_busy"


class AmbiguousDelivery(UpstreamError):
    """The request was sent and no answer came: it cannot be known whether it was processed."""

    code = AMBIGUOUS_DELIVERY
    reason = "ambiguous_delivery"


class UpstreamTimeout(AmbiguousDelivery):
    """No answer within `response_timeout` after the request was sent."""

    status = 504
    reason = "upstream_timeout"


class RestoreFailed(UpstreamError):
    """The upstream has forgotten the session and cannot begin it anew for now. It refused the request."""

    reason = "restore_failed"


class UpstreamBroke(UpstreamError):
    """The upstream's response ended half way. It is let out so that the client's ends half way as well."""

    reason = "upstream_broke"


class StoreDown(ShadowcatError):
    """The session store is down or full. Nothing was sent upstream unless the session was just begun."""

    status = 503
    level = logging.ERROR
    retry_after = 2
    reason = "store_down"


class Stopping(ShadowcatError):
    """The proxy is being stopped and the request had no effect: another replica will answer it."""

    status = 503
    level = logging.INFO
    retry_after = 1
    reason = "stopping"

    def __init__(self) -> None:
        super().__init__("The proxy is being stopped: try again, another replica will answer.")


class NotStarted(ShadowcatError):
    """The application that this one is mounted in did not enter its lifespan."""

    level = logging.ERROR
    reason = "not_started"

    def __init__(self) -> None:
        super().__init__(
            "Shadowcat is not started: a mounted app's lifespan does not run by itself. Enter it in the "
            "host's lifespan: `async with shadowcat.lifespan_of(proxy): yield`"
        )
