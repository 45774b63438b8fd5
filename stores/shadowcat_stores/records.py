"""The records a session store keeps: plain, frozen, and with nothing of any backend in them.

They are `msgspec` structs, so a backend can turn one into bytes and back with
`msgspec.msgpack.encode(record)` and `msgspec.msgpack.decode(data, type=Session)`. A field added later
has a default, so records written by an older version still decode.
"""

from __future__ import annotations

from typing import Literal

import msgspec

GET_STREAM = "get"
"""The name of a session's standalone GET stream (the default stream of the last event id)."""

Kind = Literal["request", "notification", "response", "error", "other", "gap"]
"""What a message is. `other`: an event or a body that is no JSON-RPC message, kept as it came; or the proxy's
`{"shadowcat":"session_restored"}`, where the server begins anew since it had forgotten the session. `gap`: no
message, but the place of some that could not be recorded; `raw` says how many, as `{"dropped": 3}`."""

Direction = Literal["client", "server"]
"""Who sent a frame: the client's side or the server's side."""

JsonRpcId = int | float | str | None


class MessageEnvelope(msgspec.Struct, frozen=True):
    """One JSON-RPC message's outside. `raw` is the message as it came; its params are not interpreted."""

    raw: bytes
    kind: Kind
    method: str | None = None
    id: JsonRpcId = None


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope as recorded in a session."""

    session_id: str
    direction: Direction
    envelope: MessageEnvelope
    at: float
    """When the proxy saw it, in seconds since the epoch."""
    seq: int = 0
    """Place in the session's tape: 1, 2, 3 … without a gap. The store gives it; 0 is "not stored yet"."""
    stream: str | None = None
    """The SSE response it travelled on, `GET_STREAM` for the session's GET streams; a request of the client's
    has the stream that is to answer it, also where the answer then came in a plain body. `None` for what the
    server sent in one, and for what asks for no answer. In the session that traffic without one is recorded
    under, an answer in a plain body has its request's stream: clients' ids are the same there."""
    position: int = 0
    """Which event of its stream it was: 1, 2, 3 …; the messages of one batch share it. Each GET stream that
    is opened upstream begins anew with 1, under the same name. 0 off a stream, and for the client's."""
    event: str | None = None
    """The SSE event type where it is not the default, `message`."""
    event_id: str | None = None
    """The SSE event id: the upstream's own. `None` where it gave none, and the client saw the one that the
    proxy makes, `<stream>-<position>` (without a session, none). Those made on a GET stream are stored: they
    have a name of their own for each that was opened, so that none is made twice in a session."""
    token: int = 0
    """The writer's fencing token for the stream (see `SessionStore.claim_stream`); 0 is "not fenced"."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What the client believes it has with the server.

    Records are frozen: change one with `msgspec.structs.replace(session, …)` and hand it to
    `SessionStore.update_session`.
    """

    id: str
    """The id shown to the client. With `~` begin those of the proxy's own, which no client can use, such as
    `~ambient.…` for traffic without a session, one for each upstream and principal."""
    created_at: float
    """Seconds since the epoch."""
    expires_at: float
    """Seconds since the epoch. From this moment on the session is absent."""
    upstream: str = "default"
    """The name of the upstream it lives on."""
    upstream_session_id: str | None = None
    """The upstream's own id; `None` for a server that keeps no session."""
    message_endpoint: str = ""
    """Where the upstream takes the messages of a session over HTTP+SSE (2024-11-05), as path and query: that
    names the session there. Empty for sessions over Streamable HTTP."""
    protocol_version: str | None = None
    """The revision the server answered `initialize` with."""
    principal: str = ""
    """Whom it belongs to; empty for a client without credentials."""
    credentials: tuple[str, ...] = ()
    """Digests of the credentials the upstream has accepted on it, newest last."""
    initialize: bytes = b""
    """The params of the client's `initialize`, as JSON: what restoring the session sends again."""
    server_info: bytes = b""
    """The server's `serverInfo`, as JSON: how a restored upstream is recognised."""
    server_capabilities: bytes = b""
    """The capabilities the server declared, as JSON."""
    log_level: str = ""
    """The level that the client has set with `logging/setLevel`; empty where it has set none."""
    subscriptions: tuple[str, ...] = ()
    """The URIs of the resources that the client is subscribed to, newest last."""
    revision: int = 0
    """Counts the updates; `update_session` compares it. A new record has 0, a stored one at least 1."""
    labels: dict[str, str] = {}
    """The host's own. The proxy neither reads nor changes it."""


class Window(msgspec.Struct, frozen=True):
    """How much of a tape to keep: the newest `frames` frames in at most `bytes` bytes of raw messages.

    `None` is "no bound of mine"; the store's own limits hold all the same. The newest frame is kept
    even where it alone is larger than `bytes`.
    """

    frames: int | None = None
    bytes: int | None = None


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds a store holds under any load. `None` is "no bound"."""

    sessions: int | None = 100_000
    """Live sessions. One more is refused with `StoreFull`: a live session is never evicted."""
    frames: int | None = 10_000
    """Frames per session. The oldest go first."""
    frame_bytes: int | None = 16 * 1024 * 1024
    """Bytes of raw messages per session. The oldest frames go first; the newest one always stays."""
    streams: int | None = 1_000
    """Streams per session whose last event id and claim are remembered. The one that was least recently
    stored or claimed is forgotten first, but never one whose lease runs nor the one at hand."""


class SessionPage(msgspec.Struct, frozen=True):
    """One page of `SessionStore.list_sessions`."""

    sessions: list[Session]
    cursor: str | None = None
    """Hand it to the next `list_sessions` call; `None` after the last page. Opaque."""


class StreamClaim(msgspec.Struct, frozen=True, kw_only=True):
    """Who may write a stream of a session, and until when."""

    owner: str
    token: int
    """Grows with every change of owner (fencing)."""
    expires_at: float
    """Seconds since the epoch; from then on anyone may claim the stream."""
