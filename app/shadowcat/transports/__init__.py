"""How an upstream is reached: any `httpx2.AsyncBaseTransport`, called directly and without a client object,
so that no cookie jar, no redirect and no added header comes between.
"""

from __future__ import annotations

import httpx2

from shadowcat.settings import Settings
from shadowcat.transports._exchange import Exchange
from shadowcat.transports.http1 import HTTP1Transport

__all__ = ["Exchange", "HTTP1Transport", "http_transport"]


def http_transport(settings: Settings) -> httpx2.AsyncBaseTransport:
    """Return the transport that the settings name, for `http://` and `https://` upstreams."""
    if settings.transport == "http1":
        return HTTP1Transport(max_connections=settings.max_connections, keepalive=settings.keepalive)
    limits = httpx2.Limits(
        max_connections=settings.max_connections,
        max_keepalive_connections=settings.max_connections,
        keepalive_expiry=settings.keepalive,
    )
    return httpx2.AsyncHTTPTransport(limits=limits)
