"""A request as the bytes that are sent. Nothing is added to what the caller gave, and nothing left out."""

from __future__ import annotations

from typing import Final

import httpx2

_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2"""
_HARMLESS: Final = bytes(set(range(256)) - set(b"\r\n\0"))

_LENGTHS: Final = frozenset({len("content-length"), len("transfer-encoding")})


def request_head(method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, int | None]:
    """Return the request's head, and the length in bytes that it announces of the body, `None` for chunks.

    Raises:
        httpx2.LocalProtocolError: the server could read another request, or several, out of it.
    """
    verb = method.encode("latin-1")
    names = [verb, *[name for name, _ in headers]]
    if b"".join(names).translate(None, _TOKEN) or b"" in names:
        raise httpx2.LocalProtocolError("The method, or the name of a header, is no token.")
    lines = [b"%b %b HTTP/1.1" % (verb, target), *[b": ".join(pair) for pair in headers], b"\r\n"]
    head = b"\r\n".join(lines)
    if head.translate(None, _HARMLESS) != b"\r\n" * (len(names) + 1):
        raise httpx2.LocalProtocolError("A header has a line end or a NUL in its value.")
    return head, _announced([pair for pair in headers if len(pair[0]) in _LENGTHS])


def _announced(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length of the body, `None` for chunks."""
    length: int | None = 0
    given = False
    for given_name, value in headers:
        name = given_name.lower()
        is_length = name == b"content-length"
        if is_length or name == b"transfer-encoding":
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
