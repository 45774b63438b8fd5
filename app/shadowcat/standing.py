"""A session's standing state: what the client has set in the server once, and relies on ever since."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from shadowcat.errors import StoreDown
from shadowcat.inbound import ClientRequest
from shadowcat.readers import Arrival, reader_for
from shadowcat.sessions import SessionManager
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat.watch import spared
from shadowcat_stores import Session

logger = logging.getLogger("shadowcat.sessions")

_METHODS: Final = frozenset({"logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
_MOST_SUBSCRIPTIONS: Final = 1000
_LONGEST: Final = 2048
"""Characters of a URI or a level. A session record is read often, so what is longer is not remembered."""


class _Params(msgspec.Struct):
    level: str = ""
    uri: str = ""


class _Request(msgspec.Struct):
    params: _Params


_requests = msgspec.json.Decoder(_Request)

Change = Callable[[Session], Session]


def sets_standing_state(request: ClientRequest) -> bool:
    """Return whether the request, where it succeeds, changes what the server is to be told anew."""
    for message in request.messages:  # noqa: SIM110 - every POST comes by, and a generator costs 0.2 µs
        if message.method in _METHODS:
            return True
    return False


async def remember(
    sessions: SessionManager, session: Session, request: ClientRequest, response: UpstreamResponse, limit: int
) -> None:
    """See to it that what the request sets is kept in the session before the client reads that it is set."""
    changes = {
        message.id: _change(message.method or "", message.raw)
        for message in request.messages
        if message.kind == "request"
    }
    reader = reader_for(response, limit)
    if reader is None:
        return

    async def look(arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            for message in arrival.messages:
                change = changes.pop(message.id, None) if message.kind in ("response", "error") else None
                if change is not None and message.kind == "response":
                    await _store(sessions, session, change)

    if response.media is Media.JSON:
        body = await response.peek(limit)
        await look([*reader.feed(body), *reader.end()])
    else:

        async def watch(chunk: bytes) -> None:
            await look(reader.feed(chunk))

        response.watch = watch


def standing_state(session: Session) -> Iterator[tuple[str, bytes]]:
    """Yield the requests, method and params, that set all of it again."""
    if session.log_level:
        yield "logging/setLevel", msgspec.json.encode({"level": session.log_level})
    for uri in session.subscriptions:
        yield "resources/subscribe", msgspec.json.encode({"uri": uri})


async def _store(sessions: SessionManager, session: Session, change: Change) -> None:
    # The upstream has set it: that its client has left by now, or the store, must not undo the answer.
    with spared():
        try:
            await sessions.update(session, change)
        except StoreDown as exc:
            logger.warning("session %s: what it has set could not be kept: %s", session.id, exc)


def _change(method: str, raw: bytes) -> Change | None:
    if method not in _METHODS:
        return None
    try:
        params = _requests.decode(raw).params
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    text = params.level if method == "logging/setLevel" else params.uri
    if not 0 < len(text) <= _LONGEST:
        return None

    def change(session: Session) -> Session:
        if method == "logging/setLevel":
            return session if session.log_level == text else _with(session, log_level=text)
        if (method == "resources/subscribe") == (text in session.subscriptions):
            return session
        if method == "resources/unsubscribe":
            left = tuple(uri for uri in session.subscriptions if uri != text)
            return _with(session, subscriptions=left)
        return _with(session, subscriptions=(*session.subscriptions, text)[-_MOST_SUBSCRIPTIONS:])

    return change


def _with(session: Session, **changes: object) -> Session:
    return msgspec.structs.replace(session, **changes)
