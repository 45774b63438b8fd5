"""The index of all sessions of a prefix: how many live, and in which order they were created.

It is in a slot of its own, so it and a session cannot change in one step. The session's own record says
what is true, and the index follows it:

- A session takes its number and, under the limit, a reservation before it is written, and enters the index
  after. A reservation that leads to nothing lapses by itself.
- A session that lives and is missing here, since somebody died in between or the index was lost, enters
  when it is next touched or updated. An entry without a session goes when a listing meets it, or expires.
- Every step names the session by id and number, so what comes late cannot be about another session of the
  same id; and the numbers of deleted ones are kept for a while, so that nothing late brings one back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from shadowcat_stores._redis.scripts import Command, Script

RESERVED_FOR: Final = 10.0
"""Seconds after which a reservation lapses; a create is over long before."""

PURGED_AT_ONCE: Final = 100
"""Expired entries that one call clears away: more than it adds, and too few to stop the server for."""

_KEYS = """
local now = tonumber(ARGV[1])
local by_expiry, by_number, reserved, gone, numbers = unpack(KEYS)
local function last(ttl)
  for _, key in ipairs(KEYS) do
    local left = redis.call('PTTL', key)
    if left ~= -2 and left < ttl then redis.call('PEXPIRE', key, ttl) end
  end
end
"""

_RESERVE: Final = Script(
    _KEYS
    + """
local id, most = ARGV[2], tonumber(ARGV[4])
local expired = redis.call('ZRANGEBYSCORE', by_expiry, '-inf', ARGV[1], 'LIMIT', 0, ARGV[6])
if #expired > 0 then
  redis.call('ZREM', by_expiry, unpack(expired))
  redis.call('ZREM', by_number, unpack(expired))
end
redis.call('ZREMRANGEBYSCORE', reserved, '-inf', ARGV[1])
local expires = redis.call('ZSCORE', by_expiry, id)
local counted = expires and tonumber(expires) > now
if not counted and not redis.call('ZSCORE', reserved, id) then
  local live = redis.call('ZCOUNT', by_expiry, '(' .. ARGV[1], '+inf')
  if most and live + redis.call('ZCARD', reserved) >= most then return 0 end
  redis.call('ZADD', reserved, ARGV[3], id)
end
local number = redis.call('INCR', numbers)
last(tonumber(ARGV[5]))
return number
"""
)
"""now, id, until, most sessions, TTL, most to purge -> number; 0 where the store is full."""

_ENTER: Final = Script(
    _KEYS
    + """
local newest = 0
for i = 3, #ARGV, 3 do
  local id, number, expires = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  redis.call('ZREM', reserved, id)
  if not redis.call('ZSCORE', gone, number) then
    local known = tonumber(redis.call('ZSCORE', by_number, id) or 0)
    if known < tonumber(number) then
      redis.call('ZADD', by_number, number, id)
      redis.call('ZADD', by_expiry, expires, id)
    elseif known == tonumber(number) then
      redis.call('ZADD', by_expiry, 'GT', expires, id)
    end
    newest = math.max(newest, tonumber(number))
  end
end
if tonumber(redis.call('GET', numbers) or 0) < newest then redis.call('SET', numbers, newest) end
last(tonumber(ARGV[2]))
return 1
"""
)
"""now, TTL, then id and number and expires_at of each."""

_REMOVE: Final = Script(
    _KEYS
    + """
redis.call('ZREMRANGEBYSCORE', gone, '-inf', ARGV[1])
for i = 4, #ARGV, 2 do
  local id, number = ARGV[i], ARGV[i + 1]
  if tonumber(redis.call('ZSCORE', by_number, id)) == tonumber(number) then
    redis.call('ZREM', by_expiry, id)
    redis.call('ZREM', by_number, id)
  end
  redis.call('ZADD', gone, ARGV[2], number)
end
last(tonumber(ARGV[3]))
return 1
"""
)
"""now, until, TTL, then id and number of each."""

_PAGE: Final = Script(
    "return redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])"
)
"""number, most -> id and number of each. A script, since the reply to the plain command depends on RESP."""

_SLACK_MS: Final = 300_000
_LONGEST_MS: Final = 100 * 365 * 86_400_000


def ttl_ms(now: float, until: float) -> int:
    """Return for how long the server should keep what ends at `until` by the injected clock.

    Five minutes longer, so that the clocks of several processes, and not the server's, say when it ends.
    """
    return int(min(max(until - now, 0.0) * 1000, _LONGEST_MS)) + _SLACK_MS


_KINDS: Final = {
    "expiry": b"zset",
    "number": b"zset",
    "reserved": b"zset",
    "gone": b"zset",
    "numbers": b"string",
}
"""The keys, and what is under them."""


class Entry(NamedTuple):
    """What the index knows of a session."""

    session_id: str
    number: int
    expires_at: float


class Index:
    """Makes the commands for the index of a prefix. `key` is any of its keys: they are in one slot."""

    def __init__(self, prefix: str) -> None:
        # A session may have the id `index`; its keys end in other names.
        self.keys = tuple(f"{prefix}{{index}}:{name}" for name in _KINDS)
        self.key = self.keys[0]
        self.probe = f"{prefix}{{index}}:probe"

    def reserve(self, now: float, session_id: str, most: int | None) -> Command:
        """Return the command for a new session's number, 0 where the limit is reached."""
        until = now + RESERVED_FOR
        limit = "" if most is None else most
        ttl = ttl_ms(now, until)
        return _RESERVE(self.keys, repr(now), session_id, repr(until), limit, ttl, PURGED_AT_ONCE)

    def enter(self, now: float, entries: Iterable[Entry]) -> Command:
        """Return the command that enters live sessions, or moves their expiry forward."""
        found = list(entries)
        ttl = ttl_ms(now, max(entry.expires_at for entry in found))
        values = [value for each in found for value in (each.session_id, each.number, repr(each.expires_at))]
        return _ENTER(self.keys, repr(now), ttl, *values)

    def remove(self, now: float, entries: Iterable[tuple[str, int]]) -> Command:
        """Return the command that removes sessions which are gone, given by id and number."""
        until = now + RESERVED_FOR
        values = [value for entry in entries for value in entry]
        return _REMOVE(self.keys, repr(now), repr(until), ttl_ms(now, until), *values)

    def page(self, after: int, most: int) -> Command:
        """Return the command for the ids and numbers of the next `most` sessions after a number."""
        return _PAGE(self.keys, after, most)

    def count(self, now: float) -> Command:
        """Return the command that counts the live sessions."""
        return ("ZCOUNT", self.key, f"({now!r}", "+inf")

    def kinds(self) -> tuple[Command, ...]:
        """Return the commands that ask what is under its keys."""
        return tuple(("TYPE", key) for key in self.keys)

    def is_foreign(self, kinds: Iterable[bytes]) -> bool:
        """Return whether what is under the keys is of somebody else, given the answers to `kinds`."""
        return any(kind not in (b"none", ours) for kind, ours in zip(kinds, _KINDS.values(), strict=True))
