"""Whose session a request belongs to, and what becomes of it. The manager references a store, makes none."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from msgspec.structs import replace

from shadowcat.ambient import is_ambient
from shadowcat.begun import Begun
from shadowcat.envelope import stated_version
from shadowcat.errors import SessionRequired, SessionUnknown, StoreDown, UpstreamError
from shadowcat.handshake import is_initialize, with_answer, with_offer
from shadowcat.inbound import ClientRequest
from shadowcat.principal import Credentials, judged, may_use, with_accepted
from shadowcat.protocol import WITH_SESSIONS, is_stateless
from shadowcat.session_cache import SessionCache
from shadowcat.settings import Settings
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat_stores import (
    MessageEnvelope,
    Session,
    SessionConflict,
    SessionExists,
    SessionNotFound,
    SessionStore,
    StoreError,
    StoreFull,
)

logger = logging.getLogger("shadowcat.sessions")

T = TypeVar("T")

_ID_BYTES: Final = 24
_AFTER_ITS_STREAM: Final = 600.0
"""Seconds that a session over HTTP+SSE lives without its stream's replica, which keeps it alive: one that is
killed ends it for good, and leaves the record."""
_LEAVING_KEPT: Final = 1000


class SessionManager:
    """The sessions of one upstream's clients."""

    def __init__(self, store: SessionStore, settings: Settings, upstream: str) -> None:
        self._store = store
        self._cache = SessionCache(store, settings.session_cache)
        self._timeout = settings.store_timeout
        self._upstream = upstream
        self._ttl = settings.session_ttl
        self._touch_after = settings.touch_after
        self._own_ids = settings.session_ids == "own"
        self._credential_headers = settings.credential_names
        self._ended: set[str] = set()
        """Sessions that their clients have ended, and that the store could not delete yet."""
        self._leaving: dict[str, None] = {}
        """Sessions that their clients have asked to end: what they still send is not worth beginning anew."""

    async def resolve(self, request: ClientRequest) -> Session | None:
        """Return the session that the request names; `None` where it needs none.

        Raises:
            SessionRequired: it names none and needs one.
            SessionUnknown: there is no such session for this client.
            StoreDown: the store cannot say.
        """
        if is_stateless(request.protocol_version) or request.method == "OPTIONS":
            return None
        session_id = request.session_id
        if session_id is None:
            self._require_none(request)
            return None
        session = await self._find(session_id, request)
        if session.message_endpoint:
            raise SessionUnknown  # its messages have an address of their own
        if request.method == "DELETE":
            self._leave(session_id)
        return session

    async def resolve_at_endpoint(self, session_id: str, request: ClientRequest) -> Session:
        """Return the session over HTTP+SSE of this id.

        Raises:
            SessionUnknown: there is no such session for this client.
            StoreDown: the store cannot say.
        """
        session = await self._find(session_id, request)
        if not session.message_endpoint:
            raise SessionUnknown
        return session

    async def _find(self, session_id: str, request: ClientRequest) -> Session:
        if is_ambient(session_id):
            raise SessionUnknown
        session = self._cache.known(session_id) or await self.ask(self._cache.read(session_id))
        if session is None or session.upstream != self._upstream or session_id in self._ended:
            raise SessionUnknown
        now = self._store.clock()
        if session.principal and not may_use(session, self._credentials(request), now):
            raise SessionUnknown
        expires_at = now + (self._lifetime(at_endpoint=True) if session.message_endpoint else self._ttl)
        if expires_at - session.expires_at >= self._touch_after:
            await self._prolong(session, expires_at)
        return session

    def has_accepted(self, session: Session, request: ClientRequest) -> bool:
        """Return whether the upstream has accepted the request's credential on the session."""
        if not session.principal:
            return True
        return self._credentials(request).digest(session.id) in session.credentials

    async def current(self, session: Session) -> Session:
        """Return the session as it is now; as it was where the store does not say."""
        try:
            return await self.ask(self._cache.get(session.id)) or session
        except StoreDown:
            return session

    def _leave(self, session_id: str) -> None:
        if len(self._leaving) >= _LEAVING_KEPT:
            # The oldest: of a DELETE that the upstream never answered nothing more is heard.
            del self._leaving[next(iter(self._leaving))]
        self._leaving[session_id] = None

    def _require_none(self, request: ClientRequest) -> None:
        # With the upstream's own ids a server may keep no session at all, so the upstream judges.
        # So it does where a client looks for the event that HTTP+SSE begins with, or names a revision that is
        # unknown here: its answer tells the client how to go on.
        if not self._own_ids or is_initialize(request) or request.method == "GET":
            return
        version = request.protocol_version or stated_version(request.body)
        if version is not None and version not in WITH_SESSIONS:
            return
        raise SessionRequired(
            "Mcp-Session-Id is missing: begin a session with initialize and send its id along."
        )

    async def _prolong(self, session: Session, expires_at: float) -> None:
        if not await self.touch(session.id, at_endpoint=bool(session.message_endpoint)):
            self._cache.discard(session.id)
            raise SessionUnknown
        self._cache.prolong(session.id, expires_at)

    async def touch(self, session_id: str, *, at_endpoint: bool = False) -> bool:
        """Let the session, over HTTP+SSE or not, live on as from its beginning; say whether there is one.

        Raises:
            StoreDown: the store does not take it.
        """
        expires_at = self._store.clock() + self._lifetime(at_endpoint)
        return await self.ask(self._store.touch_session(session_id, expires_at))

    def _lifetime(self, at_endpoint: bool) -> float:
        return min(self._ttl, _AFTER_ITS_STREAM) if at_endpoint else self._ttl

    async def begin(
        self, request: ClientRequest, response: UpstreamResponse, answer: MessageEnvelope | None
    ) -> Session | None:
        """Store a session for an `initialize` that the upstream has answered; `None` where it refused.

        Args:
            request: the client's `initialize`.
            response: the head of the upstream's response.
            answer: the message that answers it; `None` where it could not be read along.

        Raises:
            StoreDown: the session could not be stored.
            UpstreamError: the upstream gave an id that is in use.
        """
        unreadable = answer is None and response.media is Media.OTHER
        refused = response.status >= 300 or unreadable or (answer is not None and answer.kind == "error")
        if refused or (response.session_id is None and not self._own_ids):
            return None
        if response.session_id is not None and not self._own_ids and is_ambient(response.session_id):
            raise UpstreamError("The upstream gave a session id of a form that is the proxy's own.")
        session = self._new(request, None if self._own_ids else response.session_id)
        session = replace(session, upstream_session_id=response.session_id)
        try:
            return await self.ask(
                self._store.create_session(with_answer(with_offer(session, request), answer))
            )
        except SessionExists:
            raise UpstreamError("The upstream gave a session id that is in use.") from None

    async def begin_at_endpoint(self, request: ClientRequest, endpoint: str) -> Session:
        """Store a session over HTTP+SSE, whose stream this request has opened.

        Args:
            request: the client's GET, which the upstream has accepted.
            endpoint: where the upstream takes its messages, as path and query.

        Raises:
            StoreDown: the session could not be stored.
        """
        session = self._new(request, None)
        expires_at = session.created_at + self._lifetime(at_endpoint=True)
        session = replace(session, message_endpoint=endpoint, expires_at=expires_at)
        return await self.ask(self._store.create_session(session))

    def _new(self, request: ClientRequest, session_id: str | None) -> Session:
        """Return a session of the request's principal, with an id of our own where it is given none."""
        credentials = self._credentials(request)
        session_id = session_id or secrets.token_urlsafe(_ID_BYTES)
        now = self._store.clock()
        session = Session(
            id=session_id,
            created_at=now,
            expires_at=now + self._ttl,
            upstream=self._upstream,
            principal=credentials.principal(session_id),
        )
        return with_accepted(session, credentials)

    def has_news(self, session: Session, request: ClientRequest, response: UpstreamResponse) -> bool:
        """Return whether the upstream's answer says something of the session that is to be kept."""
        if request.method == "DELETE":
            return True
        credentials = self._credentials(request)
        return bool(credentials.values) and self._judged(session, credentials, response) is not session

    def _judged(self, session: Session, credentials: Credentials, response: UpstreamResponse) -> Session:
        """Return the session with what the upstream thinks of the credentials."""
        return judged(session, credentials, response.status, response.headers, self._store.clock())

    async def settle(self, session: Session, request: ClientRequest, response: UpstreamResponse) -> None:
        """Keep what the upstream's answer says about the session: an accepted credential, or its end.

        The request has been processed by now, so a store that does not take it costs the client no answer.
        """
        try:
            if request.method == "DELETE" and (response.status < 300 or response.status == 404):
                await self.ask(self._end(session.id))
            else:
                credentials = self._credentials(request)
                await self.update(session, lambda current: self._judged(current, credentials, response))
        except StoreDown as exc:
            logger.warning("session %s could not be updated: %s", session.id, exc)
        finally:
            if request.method == "DELETE":
                self._leaving.pop(session.id, None)

    async def _end(self, session_id: str) -> None:
        self._ended.add(session_id)
        try:
            await self._store.delete_session(session_id)
        finally:  # Not before: another request would read it once more, and keep it.
            self._cache.discard(session_id)
        self._ended.discard(session_id)

    async def end_again(self) -> None:
        """Delete the sessions that have ended while the store was down.

        Raises:
            StoreDown: it still is.
        """
        for session_id in tuple(self._ended):
            await self.ask(self._end(session_id))

    async def read(self, session_id: str) -> Session:
        """Return the session as the store has it now.

        Raises:
            SessionUnknown: it has ended.
            StoreDown: the store cannot say.
        """
        session = await self.ask(self._store.get_session(session_id))
        if session is None or session_id in self._ended:
            self._cache.discard(session_id)
            raise SessionUnknown
        self._cache.put(session)
        return session

    async def update(self, session: Session, change: Callable[[Session], Session]) -> Session | None:
        """Change the session by compare-and-set; return it as it then is, or `None` where it has ended.

        Args:
            session: the record as last read.
            change: returns the changed record, or the one it was given. Asked again with a newer one where
                somebody else was faster.

        Raises:
            StoreDown: the store does not take it.
        """
        current = await self.ask(self._change(session, change))
        if current is None:
            self._cache.discard(session.id)
        elif current is not session:
            self._cache.put(current)
        return current

    async def _change(self, session: Session, change: Callable[[Session], Session]) -> Session | None:
        current: Session | None = session
        while current is not None and (changed := change(current)) is not current:
            try:
                return await self._store.update_session(changed)
            except SessionConflict:
                current = await self._store.get_session(session.id)
            except SessionNotFound:
                return None
        return current

    async def end(self, session_id: str) -> None:
        """Delete the session: at once for this process, in the store as soon as it takes it."""
        try:
            await self.ask(self._end(session_id))
        except StoreDown as exc:
            logger.warning("session %s could not be deleted yet: %s", session_id, exc)

    def may_restore(self, session: Session, request: ClientRequest) -> bool:
        """Return whether the session may be begun anew upstream with what this request shows.

        That is more than being let in: a session without credentials is open to any, and stays nobody's, so
        only credentials count that were accepted on it. And its client must not be about to end it.
        """
        credentials = self._credentials(request)
        return session.id not in self._leaving and (
            not credentials
            or credentials.digest(session.id) in session.credentials
            or credentials.principal(session.id) == session.principal
        )

    async def ask(self, call: Awaitable[T]) -> T:
        """Return what the store answers, in the time that it may take.

        Raises:
            StoreDown: it does not, said as the client is to be told it.
            SessionExists, SessionNotFound: as the call does.
        """
        try:
            begun = Begun(call)
            return begun.result if begun.is_done else await begun.within(self._timeout)
        except (SessionExists, SessionNotFound):
            raise
        except StoreFull as exc:
            raise StoreDown(f"No more sessions can be kept: {exc}") from exc
        except StoreError as exc:
            raise StoreDown(f"The session store does not answer: {exc}") from exc
        except TimeoutError:
            raise StoreDown(f"The session store did not answer within {self._timeout} s.") from None

    def _credentials(self, request: ClientRequest) -> Credentials:
        return Credentials.of(request.headers, self._credential_headers)
