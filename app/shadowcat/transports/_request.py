"""A request as the bytes that are sent. Nothing is added to what the caller gave, and nothing left out."""

from __future__ import annotations

from typing import Final

import httpx2

_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2"""


def request_head(request: httpx2.Request) -> tuple[bytes, int | None]:
    """Return the request's head, and the length in bytes that it announces of the body, `None` for chunks.

    Raises:
        httpx2.LocalProtocolError: the server could read another request, or several, out of it.
    """
    lengths: list[bytes] = []
    chunked = False
    names = [method := request.method.encode("latin-1")]
    lines = [b"%b %b HTTP/1.1" % (method, request.url.raw_path)]
    for name, value in request.headers.raw:
        names.append(name)
        lines.append(b"%b: %b" % (name, value))
        if len(name) == 14 and name.lower() == b"content-length":
            lengths.append(value)
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise httpx2.LocalProtocolError(
                    f"Transfer-Encoding: {value!r} cannot be sent, only 'chunked'"
                )
            chunked = True
    head = b"\r\n".join((*lines, b"", b""))
    if b"" in names or b"".join(names).translate(None, _TOKEN):
        raise httpx2.LocalProtocolError("the method or the name of a header is no token")
    ends = len(lines) + 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise httpx2.LocalProtocolError("a header has a line end or a NUL in its value")
    return head, None if chunked and not lengths else _length(lengths, chunked)


def _length(lengths: list[bytes], chunked: bool) -> int:
    if not lengths:
        return 0
    if chunked or len(lengths) > 1 or not lengths[0].isdigit():
        raise httpx2.LocalProtocolError("the headers do not say in one way how long the body is")
    return int(lengths[0])


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
