"""Names and numbers of the Model Context Protocol that a proxy needs. Nothing here does I/O."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

SESSION_ID: Final = b"mcp-session-id"
PROTOCOL_VERSION: Final = b"mcp-protocol-version"
LAST_EVENT_ID: Final = b"last-event-id"
METHOD: Final = b"mcp-method"
NAME: Final = b"mcp-name"

POLLED_SINCE: Final = "2025-11-25"
"""From this revision on clients take events that carry only an id, and come back for a stream that ends."""

WITH_SESSIONS: Final = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"})
"""The revisions that have sessions."""

STATELESS_SINCE: Final = "2026-07-28"
"""From this revision on there are no sessions; revisions are dates, so they compare as text."""

_STATELESS_NAMES: Final = re.compile(r"[2-9]\d{3}-\d\d-\d\d|DRAFT-\d{4}-v\d+", re.ASCII)
"""What names a revision later than those with sessions: a date, or a draft as that revision's were called."""

META_PROTOCOL_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
"""Where a request of a stateless revision names its revision in the body, under `params._meta`."""

META_SUBSCRIPTION_ID: Final = "io.modelcontextprotocol/subscriptionId"
"""Where what comes on a `subscriptions/listen` stream names the request that asked for it."""

NAMED_BY: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "task_id",
    "tasks/update": "task_id",
    "tasks/cancel": "task_id",
}
"""Which of its params names what a request of a stateless revision is about, as `Mcp-Name` does."""

HEADER_MISMATCH: Final = -32020
"""The protocol's own, from 2026-07-28 on."""
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INTERNAL_ERROR: Final = -32603
AMBIGUOUS_DELIVERY: Final = -31001
"""Ours, outside the range JSON-RPC reserves: nobody can know whether the upstream processed it."""

CHALLENGES: Final = frozenset({401, 403})
"""The statuses of answers that may ask for credentials, or for others."""

MARK: Final = b'{"shadowcat":"session_restored"}'
"""What stands in the tape, as a message of kind `other`, where the server's side of a session begins anew."""


def is_polled(version: str | None) -> bool:
    """Return whether clients of this revision come back by themselves for a stream that has ended."""
    return version is not None and version >= POLLED_SINCE


def is_stateless(version: str) -> bool:
    """Return whether this revision is one without sessions."""
    return version >= STATELESS_SINCE and _names_stateless(version)


@lru_cache(64)
def _names_stateless(version: str) -> bool:
    return _STATELESS_NAMES.fullmatch(version) is not None
