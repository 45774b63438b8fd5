"""Which headers pass, on raw pairs and in one pass. Headers are lists of pairs: a dict loses repeats."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

Headers = list[tuple[bytes, bytes]]
"""Pairs of a lower-case name and a value, in the order they came."""

HOP_BY_HOP: Final = frozenset(
    {
        # https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # Addressed to the proxy itself (RFC 9110 §11.7).
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
    }
)


_NEVER_HOP_BY_HOP: Final = frozenset(
    {
        b"accept",
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"cookie",
        b"last-event-id",
        b"mcp-protocol-version",
        b"mcp-session-id",
        b"origin",
        b"x-api-key",
    }
)
"""What the proxy or the upstream decides by: `Connection` must not make the two see different requests."""


def end_to_end(headers: Headers, unwanted: frozenset[bytes] = HOP_BY_HOP) -> Headers:
    """Return the headers less those that are unwanted, the hop-by-hop ones among them, and those that
    `Connection` names. Order and repetitions stay."""
    for name, value in headers:
        if name == b"connection":
            named = {token.strip().lower() for token in value.split(b",")}
            unwanted |= named - _NEVER_HOP_BY_HOP
    return [pair for pair in headers if pair[0] not in unwanted]


_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]")


def unsendable(headers: Headers) -> str | None:
    """Return which header cannot be sent, as a text of its name; `None` where all can.

    https://www.rfc-editor.org/rfc/rfc9110#section-5
    """
    for name, value in headers:
        if not _NAME.fullmatch(name) or _CONTROL.search(value):
            return ascii(name.decode("latin-1"))
    return None


# The few values that clients and servers ever send are looked at once.


@lru_cache(1024)
def media_type(value: bytes | None) -> bytes:
    """Return the media type of a `Content-Type` value in lower case, without its parameters."""
    return b"" if value is None else value.partition(b";")[0].strip().lower()


@lru_cache(1024)
def accepts(value: bytes, *wanted: bytes) -> bool:
    """Return whether an `Accept` value admits one of the wanted media types."""
    for part in value.split(b","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(b";"))
        refused = any(re_zero in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000") for re_zero in parameters)
        if refused:
            continue
        if kind == b"*/*" or kind in wanted:
            return True
        if kind.endswith(b"/*") and any(each.startswith(kind[:-1]) for each in wanted):
            return True
    return False
