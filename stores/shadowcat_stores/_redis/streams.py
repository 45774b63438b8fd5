"""The verbs of `RedisStore` about a session's streams."""

from __future__ import annotations

from shadowcat_stores._redis.base import RedisBase
from shadowcat_stores._redis.scripts import CLAIM, KNOWN, NOTE, RELEASE, Script
from shadowcat_stores._redis.wire import Call, Reply
from shadowcat_stores.errors import SessionNotFound
from shadowcat_stores.records import GET_STREAM, StreamClaim


class StreamVerbs(RedisBase):
    """Last event ids and claims."""

    async def store_last_event_id(self, session_id: str, event_id: str, *, stream: str = GET_STREAM) -> None:
        """Remember the id of the last event seen on the stream."""
        if not await self._run_script(NOTE, session_id, self._most_streams(), stream, event_id):
            raise SessionNotFound(f"there is no session {session_id!r}")

    async def get_last_event_id(self, session_id: str, *, stream: str = GET_STREAM) -> str | None:
        """Return the id of the last event seen on the stream; `None` where none is known."""
        found = await self._run_script(KNOWN, session_id, f"e{stream}")
        return None if found is None else str(found, "utf-8")

    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        """Become the stream's owner for `lease` seconds from now, or renew one's own lease."""
        until = self.clock() + lease
        token = await self._run_script(CLAIM, session_id, self._most_streams(), stream, owner, repr(until))
        if token < 0:
            raise SessionNotFound(f"there is no session {session_id!r}")
        return StreamClaim(owner=owner, token=token, expires_at=until) if token else None

    async def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        """End the claim that has this token; say whether it was still in force."""
        return bool(await self._run_script(RELEASE, session_id, stream, token))

    async def get_stream_claim(self, session_id: str, stream: str) -> StreamClaim | None:
        """Return the claim in force on the stream; `None` where nobody's lease runs."""
        found = await self._run_script(KNOWN, session_id, f"c{stream}")
        if found is None:
            return None
        token, until, owner = found.split(b" ", 2)
        if float(until) <= self.clock():
            return None
        return StreamClaim(owner=owner.decode(), token=int(token), expires_at=float(until))

    def _most_streams(self) -> str | int:
        return "" if self.limits.streams is None else self.limits.streams

    async def _run_script(self, script: Script, session_id: str, *arguments: str | int) -> Reply:
        keys = self._keys(session_id)
        return await self._ask(Call(keys[0], (script(keys, repr(self.clock()), *arguments),)))
