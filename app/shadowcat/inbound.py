"""The client's request, read from ASGI once: the headers the proxy looks at, and the bounded body."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from shadowcat import protocol
from shadowcat.errors import (
    BodyTooLarge,
    ForbiddenOrigin,
    NotAcceptable,
    RepeatedHeader,
    UnsupportedMediaType,
)
from shadowcat.headers import Headers, accepts, media_type
from shadowcat.settings import Settings
from shadowcat_stores import JsonRpcId, MessageEnvelope

_READ: Final = frozenset(
    {
        protocol.SESSION_ID,
        protocol.PROTOCOL_VERSION,
        protocol.LAST_EVENT_ID,
        b"accept",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"origin",
    }
)

_CHECKED: Final = (b"host", b"origin", b"accept", b"content-type", b"content-encoding")


class ClientRequest:
    """One request of a client's, with what the proxy needs to know of it."""

    __slots__ = ("_known", "_repeated", "body", "headers", "messages", "method", "query", "scheme", "server")

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.headers: Headers = []
        self.query: bytes = scope["query_string"]
        self.scheme: str = scope["scheme"]
        server = scope.get("server")
        self.server: str = server[0] if server else ""
        self.body = b""
        self.messages: list[MessageEnvelope] = []
        self._known: dict[bytes, bytes] = {}
        self._repeated: bytes | None = None
        for pair in scope["headers"]:
            name, given = pair
            # uvicorn leaves blanks after a value, which are no part of it: RFC 9110 §5.5.
            value = given.strip(b" \t")
            # As a rule it is the same pair: a stream that lasts holds it twice otherwise.
            self.headers.append(pair if value is given and type(pair) is tuple else (name, value))
            if name in _READ:
                if name in self._known:
                    self._repeat(name, value)
                else:
                    self._known[name] = value

    def _repeat(self, name: bytes, value: bytes) -> None:
        if name == b"accept":  # a list, which may come in parts
            self._known[name] += b"," + value
        else:
            self._repeated = name

    def header(self, name: bytes) -> bytes | None:
        """Return the value of one of the headers that the proxy reads, or `None`."""
        return self._known.get(name)

    @property
    def session_id(self) -> str | None:
        """The session the client names."""
        value = self.header(protocol.SESSION_ID)
        return None if value is None else value.strip().decode("latin-1")

    @property
    def protocol_version(self) -> str:
        """The revision named in the header; empty where none is."""
        return (self.header(protocol.PROTOCOL_VERSION) or b"").decode("latin-1")

    @property
    def last_event_id(self) -> str | None:
        """The id of the event after which the client wants its stream; empty counts as none."""
        value = self.header(protocol.LAST_EVENT_ID)
        return None if value is None else value.strip().decode("utf-8", "replace") or None

    @property
    def id(self) -> JsonRpcId:
        """The id of the request it carries; `None` for anything else, batches included."""
        if len(self.messages) == 1 and self.messages[0].kind == "request":
            return self.messages[0].id
        return None

    @property
    def looked_at(self) -> tuple[object, ...]:
        """What `check` decides by."""
        known = self._known
        return self.method, self.server, self._repeated, *[known.get(name) for name in _CHECKED]

    def check(self, settings: Settings) -> None:
        """Refuse what must not be forwarded, before the body is read.

        Raises:
            RepeatedHeader: one that decides is there twice: the upstream might read the other one.
            ForbiddenOrigin: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#security-warning
            NotAcceptable: `Accept` excludes both media types that the protocol answers with.
            UnsupportedMediaType: the body is no plain JSON.
        """
        self.check_sender(settings)
        accept = self.header(b"accept")
        wanted = (
            (b"text/event-stream",) if self.method == "GET" else (b"application/json", b"text/event-stream")
        )
        if accept is not None and self.method in ("GET", "POST") and not accepts(accept, *wanted):
            raise NotAcceptable(f"Accept must admit {' and '.join(each.decode() for each in wanted)}.")
        if self.method == "POST":
            self._check_body()

    def check_length(self, settings: Settings) -> None:
        """Refuse a body whose stated length is over the limit.

        Raises:
            BodyTooLarge: it is.
        """
        length = self.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > settings.max_body_bytes:
            raise _too_large(settings.max_body_bytes)

    def check_sender(self, settings: Settings) -> None:
        """Refuse what comes from where it must not, on whichever path.

        Raises:
            RepeatedHeader, ForbiddenOrigin: as `check` does.
        """
        if self._repeated is not None:
            raise RepeatedHeader(f"{self._repeated.decode()} stands more than once: send it once.")
        self._check_host(settings)
        self._check_origin(settings)

    def _check_body(self) -> None:
        if media_type(self.header(b"content-type")) != b"application/json":
            raise UnsupportedMediaType("Content-Type must be application/json.")
        if self.header(b"content-encoding") not in (None, b"", b"identity"):
            raise UnsupportedMediaType("Content-Encoding is not supported here: send the body as it is.")

    def _check_host(self, settings: Settings) -> None:
        allowed = settings.allowed_hosts
        if "*" in allowed or (not allowed and not _is_loopback(self.server)):
            return
        value = (self.header(b"host") or b"").decode("latin-1")
        host = _hostname("//" + value)
        if "@" in value or not (host in allowed if allowed else _is_loopback(host)):
            raise ForbiddenOrigin(f"Host {value!r} is not served here: add it to allowed_hosts.")

    def _check_origin(self, settings: Settings) -> None:
        value = self.header(b"origin")
        if value is None or "*" in settings.allowed_origins:
            return
        origin = value.decode("latin-1")
        if origin in settings.allowed_origins or self.is_own_origin:
            return
        if _is_loopback(self.server) and _is_loopback(_hostname(origin)):
            return
        raise ForbiddenOrigin(f"Origin {origin!r} is not allowed here: add it to allowed_origins.")

    @property
    def is_own_origin(self) -> bool:
        """Whether `Origin` names the address the client reached the proxy under (TLS may end before us)."""
        origin, host = self.header(b"origin"), self.header(b"host")
        return origin is not None and host is not None and origin.partition(b"://")[2] == host

    async def read_body(self, receive: Receive, limit: int) -> None:
        """Read the body, of `limit` bytes at most.

        Raises:
            BodyTooLarge: it is larger.
            ClientDisconnect: the client left.
        """
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
            if not message.get("more_body", False):
                self.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                return


def is_initialize(request: ClientRequest) -> bool:
    """Return whether the request is the handshake's first."""
    messages = request.messages
    return len(messages) == 1 and messages[0].kind == "request" and messages[0].method == "initialize"


def begins_session(request: ClientRequest) -> bool:
    """Return whether the request begins a session where it names none."""
    return is_initialize(request) and not protocol.is_stateless(request.protocol_version)


@lru_cache(1024)
def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that are no IPv6 address
        return ""


@lru_cache(256)
def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit} bytes: send less, or raise max_body_bytes.")
