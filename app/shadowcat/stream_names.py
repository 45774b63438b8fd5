"""Streams' names, and the event ids that are made of them. It does no I/O."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections.abc import Sequence
from random import Random, SystemRandom
from typing import Final

import msgspec

from shadowcat_stores import JsonRpcId

getrandbits: Final = Random(SystemRandom().getrandbits(128)).getrandbits  # noqa: S311

_URLSAFE: Final = bytes.maketrans(b"+/", b"-_")
_LONGEST: Final = 24
"""Bytes of a request id that a name carries: names are in every event id."""
_NAME: Final = r"s\.[\w-]{8}(?:\.([\w-]{1,32}))?|get\.[\w-]{8}"
_MINTED: Final = re.compile(rf"({_NAME})-(\d{{1,9}})", re.ASCII)
_ANSWER: Final = re.compile(_NAME, re.ASCII)


def answer_name(asked: Sequence[JsonRpcId]) -> str:
    """Return a name for the stream that answers these requests.

    That of a single request carries its id, if it is short: the tape may have forgotten the request before
    the stream ends.
    """
    name = f"s.{_random()}"
    if len(asked) != 1:
        return name
    written = msgspec.json.encode(asked[0])
    return f"{name}.{_encoded(written).rstrip('=')}" if len(written) <= _LONGEST else name


def get_name() -> str:
    """Return a name for the ids that are made on a GET stream."""
    return f"get.{_random()}"


def _random() -> str:
    # No secret: whoever guesses a name needs its session as well. The system's randomness costs 2 µs more.
    return _encoded(getrandbits(48).to_bytes(6))


def _encoded(data: bytes) -> str:
    # base64.urlsafe_b64encode takes twice as long.
    return b2a_base64(data, newline=False).translate(_URLSAFE).decode("ascii")


def asked_by(name: str) -> JsonRpcId:
    """Return the id of the request that the stream of this name answers; `None` where the name has none."""
    found = _ANSWER.fullmatch(name)
    if found is None or found[1] is None:
        return None
    try:
        written = urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4))
        return msgspec.json.decode(written, type=int | float | str)
    except (ValueError, msgspec.DecodeError):
        return None


def minted(name: str, position: int) -> str:
    """Return the id of an event that came without one: the stream's name and the event's number in it."""
    return f"{name}-{position}"


def read_minted(event_id: str) -> tuple[str, int] | None:
    """Return the name and the number in an id that is of the form of those made here; `None` for others."""
    found = _MINTED.fullmatch(event_id)
    return None if found is None else (found[1], int(found[3]))
