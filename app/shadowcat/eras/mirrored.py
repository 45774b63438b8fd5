"""What a request of a stateless revision says twice: in its body, and in headers for whoever is between.

    Servers that process the request body MUST reject requests where the values specified in the headers do
    not match the corresponding values in the request body.

https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http#server-validation

The proxy goes by both: by the header it tells the revision, by the body what it records. So it refuses what
contradicts itself. A header that is *missing* is the server's to refuse, and so is every `Mcp-Param-*`: only
who knows the tool's schema recognizes one, and others MUST forward it.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Final

from shadowcat import protocol
from shadowcat.envelope import stated
from shadowcat.errors import HeaderMismatch
from shadowcat.inbound import ClientRequest
from shadowcat_stores import MessageEnvelope

_BEFORE: Final = b"=?base64?"
_AFTER: Final = b"?="


def check_mirrored(request: ClientRequest) -> None:
    """Refuse a request whose headers and body contradict each other.

    Header requirements of notifications are not defined by the revision, so they are not looked at.

    Raises:
        HeaderMismatch: they do.
    """
    for message in request.messages:
        if message.kind == "request":
            _check(request, message)


def _check(request: ClientRequest, message: MessageEnvelope) -> None:
    method = message.method or ""
    version, name = stated(message.raw, protocol.NAMED_BY.get(method))
    expected = {protocol.PROTOCOL_VERSION: version, protocol.METHOD: method, protocol.NAME: name}
    # Each of them where one is repeated: readers differ in which counts.
    for header, value in request.headers:
        wanted = expected.get(header)
        if wanted is not None and _read(header, value) != wanted:
            how = ", as =?base64?…?= where that is no plain ASCII" if header == protocol.NAME else ""
            raise HeaderMismatch(
                f"The header {header.decode()} says something else than the body: send what the body has"
                f"{how}. Nothing was sent to the MCP server."
            )


def _read(header: bytes, value: bytes) -> str | None:
    """Return what the header says; `None` where it cannot be read."""
    try:
        if header == protocol.NAME and value.startswith(_BEFORE) and value.endswith(_AFTER):
            return b64decode(value[len(_BEFORE) : -len(_AFTER)], validate=True).decode()
        return value.decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
