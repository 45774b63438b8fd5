"""How an upstream is reached: any `httpx2.AsyncBaseTransport`, called directly and without a client object,
so that no cookie jar, no redirect and no added header comes between.
"""

from __future__ import annotations

import httpx2

from shadowcat.settings import Settings


def http_transport(settings: Settings) -> httpx2.AsyncBaseTransport:
    """Return a transport for `http://` and `https://` upstreams."""
    limits = httpx2.Limits(
        max_connections=settings.max_connections,
        max_keepalive_connections=settings.max_connections,
        keepalive_expiry=settings.keepalive,
    )
    return httpx2.AsyncHTTPTransport(limits=limits)
