"""An HTTP client for servers on loopback."""

from __future__ import annotations

from typing import Any

import httpx2


def plain_http(*, timeout: float | None = 60.0, **options: Any) -> httpx2.AsyncClient:
    """Return a client that uses nothing of the machine's, and gives up only when the test has failed.

    Loading the machine's certificates would take each of them longer than most tests.
    """
    return httpx2.AsyncClient(verify=False, trust_env=False, timeout=timeout, **options)
