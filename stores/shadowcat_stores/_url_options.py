"""What the URLs of all stores have in common: the limits, as options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from shadowcat_stores.records import StoreLimits

LIMITS: Final = {
    "max_sessions": "sessions",
    "max_frames": "frames",
    "max_frame_bytes": "frame_bytes",
    "max_streams": "streams",
}
"""The URL option of each limit."""


def read_options(query: str) -> dict[str, str]:
    """Return the options of a URL's query.

    Raises:
        ValueError: one is given twice, or there is something else.
    """
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError("an option is given twice")
    return options


def limits_of(options: Mapping[str, str]) -> StoreLimits:
    """Return the limits among the options.

    Raises:
        ValueError: one is no whole number above 0.
    """
    return StoreLimits(
        **{field: _above_0(options[name]) for name, field in LIMITS.items() if name in options}
    )


def _above_0(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError(f"{value!r} is no whole number above 0")
    return int(value)
