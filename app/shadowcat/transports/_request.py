"""A request as the bytes that are sent. Nothing is added to what the caller gave, and nothing left out."""

from __future__ import annotations

from typing import Final

import httpx2

_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2"""
_HARMLESS: Final = bytes(set(range(256)) - set(b"\r\n\0"))


def request_head(method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, int | None]:
    """Return the request's head, and the length in bytes that it announces of the body, `None` for chunks.

    Raises:
        httpx2.LocalProtocolError: the server could read another request, or several, out of it.
    """
    verb = method.encode("latin-1")
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (verb, target, b"".join(lines))
    names = [name for name, _ in headers]
    if b"".join(names).translate(None, _TOKEN) or b"" in names or verb.translate(None, _TOKEN):
        raise httpx2.LocalProtocolError("The method, or the name of a header, is no token.")
    if head.translate(None, _HARMLESS) != b"\r\n" * (len(lines) + 2):
        raise httpx2.LocalProtocolError("A header has a line end or a NUL in its value.")
    return head, _announced(headers)


def _announced(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length of the body, `None` for chunks."""
    length: int | None = 0
    given = False
    for name, value in headers:
        is_length = len(name) == 14 and name.lower() == b"content-length"
        if is_length or (len(name) == 17 and name.lower() == b"transfer-encoding"):
            if given or not (value.isdigit() if is_length else value.lower() == b"chunked"):
                raise httpx2.LocalProtocolError("The headers do not say in one way how long the body is.")
            given = True
            length = int(value) if is_length else None
    return length


def whole_body(request: httpx2.Request, length: int | None) -> bytes | None:
    """Return the body if it is at hand, `None` if it has to be iterated.

    Raises:
        httpx2.LocalProtocolError: it is not as long as announced.
    """
    if length is None or not isinstance(request.stream, httpx2.ByteStream):
        return None
    body = b"".join(request.stream)
    if len(body) != length:
        raise httpx2.LocalProtocolError(f"{length} bytes of body are announced, and {len(body)} given")
    return body
