"""`RedisStore`: sessions and tapes in Redis (6.2 or newer) or Valkey, shared by all proxies that use it.

Needs the extra `redis`: `pip install 'shadowcat-mcp[redis]'`. A store is made with a client of
`redis.asyncio` (`Redis`, `RedisCluster`, or what `Sentinel.master_for` returns), which must not decode what
it reads and stays open when the store is closed, or with one of these URLs:

    redis://user:password@host:6379/0           valkey:// is the same
    rediss://host:6379/0                        TLS; valkeys:// is the same
    unix:///run/redis.sock?db=0
    redis+sentinel://host:26379,host/mymaster/0 the primary the Sentinels know; the rest as above
    redis+cluster://host:6379,host:6379         a cluster, found by any of its nodes

`rediss+…`, `valkey+…` and `valkeys+…` go with both. All options of redis-py may follow (`?ssl_ca_certs=…`,
`client_name=…`, `sentinel_password=…`), and the store's own: `prefix`, `timeout`, `max_sessions`,
`max_frames`, `max_frame_bytes`, `max_streams`.

What the server must be:

- `maxmemory-policy noeviction`, or sessions that live are evicted when the memory is full.
- An ACL user needs the keys `~shadowcat:*` and the channels `&shadowcat:*` (your prefix), and the commands
  `+@read +@write +@scripting +@pubsub +@transaction +@connection +info`, in a cluster `+cluster +command`.
- What is acknowledged is as durable as the server: `appendonly yes` keeps it over a restart.

Each session is in keys of one hash tag, so in one slot of a cluster; the index of all sessions is in a slot
of its own. Every key has a TTL, which reclaims what expired; what is expired, the injected clock says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from shadowcat_stores._redis.index import Entry, ttl_ms
from shadowcat_stores._redis.scripts import CREATE, DELETE, TOUCH, UPDATE, Command
from shadowcat_stores._redis.streams import StreamVerbs
from shadowcat_stores._redis.tape import TapeVerbs
from shadowcat_stores._redis.wire import Call
from shadowcat_stores.errors import (
    SessionConflict,
    SessionExists,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from shadowcat_stores.records import Session, SessionPage

_PAGE_MOST = 1_000
_PAGE_LEAST = 100
"""How many sessions of the index a page looks at, so that a rare upstream costs few round trips."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Session).decode


class RedisStore(TapeVerbs, StreamVerbs):
    """Keeps sessions and tapes in Redis or Valkey.

    Args:
        server: a URL, or a client of `redis.asyncio`.
        prefix: what every key and channel begins with.
        clock: says what time it is, and so what is expired.
        limits: the bounds.
        timeout: seconds within which every call has succeeded or failed.

    Raises:
        ValueError: the URL, the client or the prefix is of no use.
    """

    # -- sessions -----------------------------------------------------------------------------------

    async def create_session(self, session: Session) -> Session:
        """Store a new session; return it with revision 1."""
        stored = replace(session, revision=1, labels=session.labels.copy())
        data = _encode(stored)
        most = self.limits.sessions
        async with self._in_time():
            # Cancelled in here, nothing follows: the reservation lapses.
            number = await self._ask_index(self._index.reserve(self.clock(), session.id, most))
            if number == 0 and await self.get_session(session.id) is None:
                raise StoreFull(
                    f"the store holds {most} live sessions, as many as StoreLimits.sessions allows"
                )
            if number == 0 or not await self._to_the_end(self._write_new(stored, data, number)):
                raise SessionExists(f"there is a session {session.id!r} already")
        return stored

    async def _write_new(self, session: Session, data: bytes, number: int) -> bool:
        now = self.clock()
        ttl = ttl_ms(now, session.expires_at)
        keys = self._keys(session.id)
        command = CREATE(keys, repr(now), data, repr(session.expires_at), number, ttl)
        created = bool(await self._ask(Call(keys[0], (command,))))
        if created:
            await self._ask_index(self._index.enter(now, [Entry(session.id, number, session.expires_at)]))
        return created

    async def get_session(self, session_id: str) -> Session | None:
        """Return the session, or `None` where it is absent."""
        return self._record(await self._ask(self._reading(session_id)))

    async def update_session(self, session: Session) -> Session:
        """Replace the record if its revision is still the stored one; return it as stored."""
        answer = (await self._to_the_end(self._update([session])))[0]
        if answer is None:
            raise SessionNotFound(f"there is no session {session.id!r}")
        if isinstance(answer, int):
            raise SessionConflict(f"session {session.id!r} is at revision {answer}, not {session.revision}")
        return answer

    async def _update(self, sessions: Sequence[Session]) -> list[Session | int | None]:
        """Return each as stored; the stored revision where that is another, `None` where it is absent."""
        now = self.clock()
        calls = [Call(self._keys(each.id)[0], (self._updating(each, now),)) for each in sessions]
        found: list[Session | int | None] = []
        moved: list[Entry] = []
        for session, answer in zip(sessions, await self._ask_all(calls), strict=True):
            if answer is None or answer[0] < 0:
                found.append(None if answer is None else int(answer[1]))
                continue
            expires_at = float(answer[2])
            if answer[0]:
                moved.append(Entry(session.id, int(answer[1]), expires_at))
            stored = replace(session, revision=session.revision + 1, expires_at=expires_at)
            found.append(replace(stored, labels=session.labels.copy()))
        if moved:
            await self._ask_index(self._index.enter(now, moved))
        return found

    def _updating(self, session: Session, now: float) -> Command:
        updated = replace(session, revision=session.revision + 1)
        return UPDATE(
            self._keys(session.id),
            repr(now),
            session.revision,
            _encode(updated),
            updated.revision,
            repr(session.expires_at),
            ttl_ms(now, session.expires_at),
        )

    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with all that belongs to it; say whether there was one."""
        return await self._to_the_end(self._delete(session_id))

    async def _delete(self, session_id: str) -> bool:
        now = self.clock()
        keys = self._keys(session_id)
        lived, number = await self._ask(Call(keys[0], (DELETE(keys, repr(now)),)))
        if number is not None:
            await self._ask_index(self._index.remove(now, [(session_id, int(number))]))
        return bool(lived)

    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        """Let the session live at least until `expires_at`; say whether it lives."""
        return await self._to_the_end(self._touch(session_id, expires_at))

    async def _touch(self, session_id: str, expires_at: float) -> bool:
        now = self.clock()
        keys = self._keys(session_id)
        command = TOUCH(keys, repr(now), repr(expires_at), ttl_ms(now, expires_at))
        answer = await self._ask(Call(keys[0], (command,)))
        if answer is not None and answer[0]:
            await self._ask_index(self._index.enter(now, [Entry(session_id, int(answer[1]), expires_at)]))
        return answer is not None

    async def count_sessions(self) -> int:
        """Return how many sessions live."""
        return int(await self._ask_index(self._index.count(self.clock())))

    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        """Return up to `limit` sessions, oldest first."""
        if limit < 1:
            raise ValueError(f"limit is {limit}: ask for at least 1")
        after = 0 if cursor is None else _number_in(cursor)
        looked_at = min(max(limit, _PAGE_LEAST), _PAGE_MOST)
        async with self._in_time():
            listed = await self._ask_index(self._index.page(after, looked_at))
            entries = [(each.decode(), int(number)) for each, number in zip(*[iter(listed)] * 2, strict=True)]
            answers = await self._ask_all([self._reading(session_id) for session_id, _ in entries])
        found: list[Session] = []
        gone: list[tuple[str, int]] = []
        end = 0
        for entry, answer in zip(entries, answers, strict=True):
            end = entry[1]
            session = self._record(answer)
            if session is None or int(answer[2]) != end:
                gone.append(entry)
            elif upstream in (None, session.upstream):
                found.append(session)
                if len(found) == limit:
                    break
        if gone:
            _ = self._begin(self._ask_index(self._index.remove(self.clock(), gone)))
        more = len(entries) == looked_at or (entries and end < entries[-1][1])
        return SessionPage(found, str(end) if more else None)

    async def get_sessions_batch(self, session_ids: Iterable[str]) -> dict[str, Session]:
        """Return the live ones among `session_ids`, by id."""
        wanted = list(dict.fromkeys(session_ids))
        answers = await self._ask_all([self._reading(each) for each in wanted])
        found = {each: self._record(answer) for each, answer in zip(wanted, answers, strict=True)}
        return {each: session for each, session in found.items() if session is not None}

    async def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        """Update each as `update_session` does; return those updated, by id."""
        given = list(sessions)
        answers = await self._to_the_end(self._update(given))
        return {answer.id: answer for answer in answers if isinstance(answer, Session)}

    # -- within -------------------------------------------------------------------------------------

    def _reading(self, session_id: str) -> Call:
        key = self._keys(session_id)[0]
        return Call(key, (("HMGET", key, "d", "x", "n"),))

    def _record(self, answer: Sequence[Any]) -> Session | None:
        data, expires = answer[0], answer[1]
        if data is None or float(expires) <= self.clock():
            return None
        try:
            session = _decode(data)
        except msgspec.DecodeError as exc:
            raise StoreUnavailable(f"what Redis has under the store's prefix is no session: {exc}") from exc
        expires_at = float(expires)
        return session if session.expires_at == expires_at else replace(session, expires_at=expires_at)


def _number_in(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit()):
        raise ValueError(f"{cursor!r} is no cursor of this store: hand back the one of the previous page")
    return int(cursor)
