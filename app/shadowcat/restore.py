"""The upstream has forgotten a session: begin it there anew, once, and let the client's go on.

    refused 404/400 ─▶ one at a time in this process ─▶ one at a time among replicas (a claim in the store)
       ─▶ restored by another meanwhile? its id ─▶ `ping` in the old one: still there? the refusal passes
       ─▶ initialize, initialized, standing state ─▶ swap the id by compare-and-set ─▶ the request once more

Nothing is given up while it cannot be known: an upstream that is down, or answers nothing sensible, is
upstream trouble (502, 503, 504), and the session stays. Only a server that refuses the stored handshake, or
has become another one, ends it: the client is answered 404 and begins a new one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import anyio
import msgspec

from shadowcat.counters import Counters
from shadowcat.errors import AmbiguousDelivery, RestoreFailed, SessionUnknown, ShadowcatError, UpstreamBroke
from shadowcat.inbound import ClientRequest, is_initialize
from shadowcat.owners import Owners
from shadowcat.protocol import MARK
from shadowcat.readers import Arrival
from shadowcat.recorder import Recorder
from shadowcat.recovery import LONGEST_COMPLAINT, Recovery
from shadowcat.sessions import SessionManager, read_result
from shadowcat.settings import Settings
from shadowcat.standing import standing_state
from shadowcat.upstream import Upstream, UpstreamResponse
from shadowcat.watch import spared
from shadowcat_stores import MessageEnvelope, Session

logger = logging.getLogger("shadowcat.sessions")

REFUSALS: Final = frozenset({400, 404})
"""The statuses with which servers say that they know no such session."""

_PATIENCE: Final = 10.0
"""Seconds that all requests of one restoration may take."""
_LEASE: Final = _PATIENCE + 5.0
"""Seconds after which a claim is void that was taken, and whose taker never heard of that."""
_CLAIM: Final = "~restore"
"""No stream has this name."""
_ASK_AGAIN: Final = 0.05
"""Seconds between looks at whether another replica has restored the session."""

# "No valid session ID provided", "Invalid session ID", "Unknown Mcp-Session-Id header"; and "Server not
# initialized" from TypeScript servers with one transport for all.
_COMPLAINT: Final = re.compile(rb"session|not initialized", re.IGNORECASE)

_BUSY: Final = frozenset({408, 421, 425, 429})
_ABSENT: Final = frozenset({404, 405})
"""What `initialize`, which names no session, is answered where no server is: it restarts behind a router."""


class _Flight:
    """One restoration that others wait for."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.session: Session | None = None
        self.error: ShadowcatError | None = None


class Restorer:
    """Restores the sessions that one upstream has forgotten."""

    def __init__(
        self,
        upstream: Upstream,
        sessions: SessionManager,
        owners: Owners,
        recorder: Recorder,
        settings: Settings,
        counters: Counters,
    ) -> None:
        self.tell: Callable[[Session, list[bytes]], None] = tell_nobody
        """Gets the notifications that a restored session's client is to be sent on its GET stream."""
        self._upstream = upstream
        self._sessions = sessions
        self._owners = owners
        self._recorder = recorder
        self._enabled = settings.restore_sessions
        self._limit = settings.max_message_bytes
        self._counters = counters
        self._flights: dict[str, _Flight] = {}

    async def restored(
        self, session: Session, request: ClientRequest, response: UpstreamResponse
    ) -> Session | None:
        """Return the session as it goes on, where the upstream refused the request since it had forgotten it.

        The request was not processed, so it may be sent once more. `None`: the response is the answer.
        It is closed otherwise, and where this raises.

        Raises:
            SessionUnknown: it cannot be restored, and has ended.
            UpstreamError: it cannot be restored for now.
            StoreDown: the store does not take it.
        """
        if not self._may_restore(session, request):
            return None
        try:
            if not await _may_complain(response):
                return None
            restored = await self._single_flight(session, request)
        except BaseException:
            await response.aclose()
            raise
        if restored is not None:
            await response.aclose()
        return restored

    def _may_restore(self, session: Session, request: ClientRequest) -> bool:
        return (
            self._enabled
            and session.upstream_session_id is not None
            and not is_initialize(request)
            # Servers answer a foreign credential as if there were no such session.
            and self._sessions.may_restore(session, request)
        )

    async def _single_flight(self, session: Session, request: ClientRequest) -> Session | None:
        while (flight := self._flights.get(session.id)) is not None:
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if (other := flight.session) and other.upstream_session_id != session.upstream_session_id:
                return other
        flight = self._flights[session.id] = _Flight()
        try:
            flight.session = await self._claimed(session, request)
        except ShadowcatError as error:
            flight.error = error
            raise
        finally:
            del self._flights[session.id]
            flight.done.set()
        return flight.session

    async def _claimed(self, session: Session, request: ClientRequest) -> Session | None:
        # A replica that has no record claims nothing: what it begins beside others loses by compare-and-set.
        claim = partial(self._owners.claim, session.id, _CLAIM, _LEASE)
        while (token := await self._sessions.ask(claim())) is None:  # noqa: ASYNC110 - it is another process's
            await anyio.sleep(_ASK_AGAIN)
        try:
            current = await self._sessions.read(session.id)
            if current.upstream_session_id != session.upstream_session_id:
                return current
            return await self._restore(current, request)
        finally:
            with spared():
                await self._owners.release(session.id, _CLAIM, token)

    async def _restore(self, session: Session, request: ClientRequest) -> Session | None:
        recovery = Recovery(self._upstream, request, self._limit)
        restored: Session | None = None
        try:
            with anyio.fail_after(_PATIENCE):
                if await self._has_forgotten(session, recovery):
                    restored = await self._begin_anew(session, recovery)
        except TimeoutError:
            raise _failed(f"did not begin it anew within {_PATIENCE:g} s") from None
        except (AmbiguousDelivery, UpstreamBroke) as exc:
            raise _failed(f"broke off when asked to begin it anew: {exc}") from exc
        finally:
            begun = recovery.begun
            if begun is not None and (restored is None or restored.upstream_session_id != begun):
                await recovery.end(begun)
        return restored

    async def _has_forgotten(self, session: Session, recovery: Recovery) -> bool:
        """Ask in the session itself: to some servers 404 means a tool, a resource, or GET as a whole.

        Beginning such a session anew would take its state away, and send twice what may have been processed.
        """
        response, _ = await recovery.ask("ping", b"{}", session.upstream_session_id)
        if response.status >= 500 or response.status in _BUSY:
            raise _failed(f"answers {response.status} to ping")
        return response.status in REFUSALS and await _may_complain(response)

    async def _begin_anew(self, session: Session, recovery: Recovery) -> Session | None:
        if not (session.initialize and session.server_info and session.protocol_version):
            await self._give_up(session, "what it began with is not known")
        response, answer = await recovery.ask("initialize", session.initialize, None)
        if response.status in (401, 403):
            return None  # the refusal stays the answer: another credential may restore it
        await self._check(session, response.status, answer)
        if recovery.begun is None:
            await self._give_up(session, "the server keeps no sessions any more")
        await self._set_up(session, recovery, recovery.begun)
        return await self._swap(session, recovery.begun)

    async def _check(self, session: Session, status: int, answer: MessageEnvelope | None) -> None:
        """Return where the server has accepted the handshake and is who it was.

        Raises:
            SessionUnknown: it has refused, or is another one.
            RestoreFailed: it did neither.
        """
        if status >= 500 or 300 <= status < 400 or status in _BUSY | _ABSENT:
            raise _failed(f"answers {status} to initialize")
        if status >= 300 or answer is None or answer.kind == "error":
            await self._give_up(session, f"the handshake it began with is refused ({status})")
        result = read_result(answer)
        same = result.protocol_version == session.protocol_version
        if not same or not _equal(bytes(result.server_info), session.server_info):
            await self._give_up(session, "the server is another one, or another version")

    async def _set_up(self, session: Session, recovery: Recovery, begun: str) -> None:
        status = await recovery.tell("notifications/initialized", begun)
        if status >= 300:
            raise _failed(f"answers {status} to notifications/initialized")
        for method, params in standing_state(session):
            response, answer = await recovery.ask(method, params, begun)
            if answer is None or answer.kind == "error":
                logger.warning(
                    "session %s: %s is answered %d, and not set", session.id, method, response.status
                )

    async def _swap(self, session: Session, begun: str) -> Session:
        former = session.upstream_session_id

        def change(current: Session) -> Session:
            if current.upstream_session_id != former:
                return current
            return msgspec.structs.replace(current, upstream_session_id=begun)

        with spared():
            swapped = await self._sessions.update(session, change)
        if swapped is None:
            raise SessionUnknown
        if swapped.upstream_session_id == begun:
            logger.warning("session %s: the upstream had forgotten it, and it was begun anew", session.id)
            self._counters.sessions_restored += 1
            self._recorder.server_sent(session.id, [Arrival([MessageEnvelope(MARK, "other")])])
            self.tell(swapped, notifications_after_restore(swapped))
        return swapped

    async def _give_up(self, session: Session, reason: str) -> NoReturn:
        logger.warning("session %s: the upstream had forgotten it, and it has ended: %s", session.id, reason)
        with spared():
            await self._sessions.end(session.id)
        raise SessionUnknown


def tell_nobody(session: Session, notifications: list[bytes]) -> None:
    """Drop the notifications: who has no GET stream open does not ask for them."""


def notifications_after_restore(session: Session) -> list[bytes]:
    """Return the JSON-RPC notifications that the server's capabilities allow, of what may have changed."""
    try:
        capabilities = json.loads(session.server_capabilities)
    except (ValueError, RecursionError):
        return []
    return [
        b'{"jsonrpc":"2.0","method":"notifications/%b/list_changed"}' % each.encode()
        for each in ("tools", "prompts", "resources")
        if isinstance(capabilities, dict)
        and isinstance(capabilities.get(each), dict)
        and capabilities[each].get("listChanged") is True
    ]


async def _may_complain(response: UpstreamResponse) -> bool:
    """Return whether a refusal may mean that the session is unknown; who says so in code may mean it."""
    body = await response.peek(LONGEST_COMPLAINT)
    encoded = response.content_encoding not in (b"", b"identity")
    return response.status == 404 or encoded or _COMPLAINT.search(body) is not None


def _equal(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except (ValueError, RecursionError):
        return False


def _failed(what: str) -> RestoreFailed:
    return RestoreFailed(
        f"The MCP server has forgotten the session, and {what}. The request was not processed: try again."
    )
