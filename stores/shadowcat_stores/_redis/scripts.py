"""What runs in the server: each change of a session or of the index is one script, so it is atomic.

Session scripts touch the keys of one session, index scripts those of the index; each lot is in one slot of
a cluster. Times are the injected clock's, passed in; they are kept as the text they came in, since Lua
would round it. PEXPIRE only reclaims what nobody deleted.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

Argument = str | bytes | bytearray | int
Command = tuple[Argument, ...]
"""What is large is a `bytearray`: it is sent from where it lies, and must not be changed any more."""

_LIVES = """
local now = tonumber(ARGV[1])
local function lives(expires) return expires and tonumber(expires) > now end
"""

# A session's keys: the record and counters (hash), the tape (stream), the streams' last event ids and
# claims (hash), the streams by use (sorted set). Fields of the first: d record, x expires_at, r revision,
# n number of creation, q newest seq, o oldest seq, b bytes of raw messages, t tokens given, u uses,
# w:<writer> the last few writes of each writer and how they were answered.

_STREAMS = """
local function claim_of(stream)
  local claim = redis.call('HGET', KEYS[3], 'c' .. stream)
  if claim then return string.match(claim, '^(%S+) (%S+) (.*)$') end
end
local function leased(stream)
  local _, till = claim_of(stream)
  return till and tonumber(till) > now
end
local function last_as_the_session(key)
  if redis.call('PTTL', key) == -1 then
    redis.call('PEXPIRE', key, redis.call('PTTL', KEYS[1]))
  end
end
local function use(stream, most)
  redis.call('ZADD', KEYS[4], redis.call('HINCRBY', KEYS[1], 'u', 1), stream)
  local excess, place = most and redis.call('ZCARD', KEYS[4]) - most or 0, 0
  while excess > 0 do
    local other = redis.call('ZRANGE', KEYS[4], place, place)[1]
    if not other then break end
    if other == stream or leased(other) then
      place = place + 1
    else
      redis.call('ZREM', KEYS[4], other)
      redis.call('HDEL', KEYS[3], 'e' .. other, 'c' .. other)
      excess = excess - 1
    end
  end
end
local function remember(stream, field, value)
  redis.call('HSET', KEYS[3], field .. stream, value)
  last_as_the_session(KEYS[3])
  last_as_the_session(KEYS[4])
end
"""

_texts: dict[str, str] = {}


class Script:
    """A script, named to the server by its digest."""

    def __init__(self, text: str) -> None:
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        _texts[self._digest] = text

    def __call__(self, keys: tuple[str, ...], *arguments: Argument) -> Command:
        """Return the command that runs the script."""
        return ("EVALSHA", self._digest, len(keys), *keys, *arguments)


def in_full(command: Command) -> Command:
    """Return the command with the script's text, which a server that lost it keeps again."""
    return ("EVAL", _texts[str(command[1])], *command[2:])


CREATE: Final = Script(
    _LIVES
    + """
if lives(redis.call('HGET', KEYS[1], 'x')) then return 0 end
if redis.call('EXISTS', unpack(KEYS)) > 0 then
  redis.call('DEL', unpack(KEYS))
  redis.call('PUBLISH', KEYS[1], '')
end
redis.call('HSET', KEYS[1], 'd', ARGV[2], 'x', ARGV[3], 'n', ARGV[4], 'r', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""
)
"""now, record, expires_at, number, TTL -> whether it was created."""

TOUCH: Final = Script(
    _LIVES
    + """
local state = redis.call('HMGET', KEYS[1], 'x', 'n')
if not lives(state[1]) then return false end
if tonumber(ARGV[2]) <= tonumber(state[1]) then return {0, state[2]} end
redis.call('HSET', KEYS[1], 'x', ARGV[2])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
return {1, state[2]}
"""
)
"""now, expires_at, TTL -> whether it moved, number; nil where the session is absent."""

UPDATE: Final = Script(
    _LIVES
    + """
local state = redis.call('HMGET', KEYS[1], 'x', 'n', 'r')
if not lives(state[1]) then return false end
if state[3] ~= ARGV[2] then return {-1, state[3]} end
redis.call('HSET', KEYS[1], 'd', ARGV[3], 'r', ARGV[4])
if tonumber(ARGV[5]) <= tonumber(state[1]) then return {0, state[2], state[1]} end
redis.call('HSET', KEYS[1], 'x', ARGV[5])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[6]) end
return {1, state[2], ARGV[5]}
"""
)
"""now, revision, record, next revision, expires_at, TTL -> whether it moved, number, expires_at;
-1 and the stored revision where that is another; nil where the session is absent."""

DELETE: Final = Script(
    _LIVES
    + """
local state = redis.call('HMGET', KEYS[1], 'x', 'n')
if redis.call('DEL', unpack(KEYS)) > 0 then redis.call('PUBLISH', KEYS[1], '') end
return {lives(state[1]) and 1 or 0, state[2]}
"""
)
"""now -> whether it lived, number."""

# The sizes of an entry are two 32 bit numbers for each frame: as packed, and of the raw message. Entries
# are under the seq of their last frame, so that a range by seq begins with the right one.
APPEND: Final = Script(
    _LIVES
    + _STREAMS
    + """
local state = redis.call('HMGET', KEYS[1], 'x', 'q', 'o', 'b', 't', 'w:' .. ARGV[5])
if not lives(state[1]) then return false end
local past = state[6] or ''
local before = string.find(past, '\\n' .. ARGV[6] .. ' ', 1, true)
if before then return string.match(past, '^\\n%d+ ([^\\n]*)', before) end
local seq, oldest = tonumber(state[2]) or 0, tonumber(state[3]) or 1
local bytes, tokens = tonumber(state[4]) or 0, tonumber(state[5]) or 0
local most_frames, most_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local most_streams, first = tonumber(ARGV[4]), seq + 1
local refused, out = {}, {}

local function fenced_out(stream, token)
  local newest = claim_of(stream)
  if newest then return token < tonumber(newest) end
  return token <= tokens
end
local argument = 8
for _ = 1, tonumber(ARGV[7]) do
  local place, stream, token = ARGV[argument], ARGV[argument + 1], tonumber(ARGV[argument + 2])
  if token > 0 and fenced_out(stream, token) then
    out[tonumber(place)] = true
    refused[#refused + 1] = place
  elseif ARGV[argument + 3] == '1' then
    use(stream, most_streams)
    remember(stream, 'e', ARGV[argument + 4])
  end
  argument = argument + 5
end

local function without_refused(place, count, sizes, packed)
  local left, left_sizes, left_packed, raw, at = 0, {}, {}, 0, 1
  for k = 1, count do
    local length, size = struct.unpack('<I4I4', sizes, 8 * k - 7)
    if not out[place + k] then
      left, raw = left + 1, raw + size
      left_sizes[left] = string.sub(sizes, 8 * k - 7, 8 * k)
      left_packed[left] = string.sub(packed, at, at + length - 1)
    end
    at = at + length
  end
  return left, raw, table.concat(left_sizes), table.concat(left_packed)
end
local place, newest = 0, 0
for i = argument, #ARGV, 4 do
  local count, raw, sizes, packed = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local given = count
  if #refused > 0 then count, raw, sizes, packed = without_refused(place, count, sizes, packed) end
  if count > 0 then
    seq, bytes = seq + count, bytes + raw
    newest = struct.unpack('<I4', sizes, 8 * count - 3)
    redis.call('XADD', KEYS[2], string.format('%.0f-0', seq), 'z', sizes, 'f', packed)
  end
  place = place + given
end

local function too_much()
  if seq <= oldest then return false end
  return (most_frames and seq - oldest + 1 > most_frames) or (most_bytes and bytes > most_bytes)
end
if seq >= first then
  local from, trimmed = '-', oldest
  while too_much() do
    local entry = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 1)[1]
    if not entry then
      oldest, bytes = seq, newest
      break
    end
    local sizes, last = entry[2][2], tonumber(string.match(entry[1], '^%d+'))
    local k = oldest - (last - #sizes / 8)
    while k <= #sizes / 8 and too_much() do
      bytes = bytes - (k < 1 and 0 or struct.unpack('<I4', sizes, 8 * k - 3))
      oldest, k = oldest + 1, k + 1
    end
    from = '(' .. entry[1]
  end
  if oldest > trimmed then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f-0', oldest)) end
  last_as_the_session(KEYS[2])
  redis.call('PUBLISH', KEYS[1], '')
end
local answer = string.format('%.0f ', first) .. table.concat(refused, ',')
past = past .. '\\n' .. ARGV[6] .. ' ' .. answer
local _, writes = string.gsub(past, '\\n', '')
if writes > 4 then past = string.match(past, '^\\n[^\\n]*(.*)$') end
redis.call('HSET', KEYS[1], 'q', seq, 'o', oldest, 'b', bytes, 'w:' .. ARGV[5], past)
return answer
"""
)
"""now, frames and bytes and streams to keep, writer, its write, how many frames concern a stream, for each
of these place and stream and token and whether it has an event id and the event id, then for each entry
count and bytes and sizes and frames -> "<first seq> <places of the refused>"; nil where the session is
absent. A write that is repeated is answered as the first time."""

FORGET: Final = Script(
    _LIVES
    + """
local state = redis.call('HMGET', KEYS[1], 'x', 'q', 'o')
if not lives(state[1]) or not state[2] then return 0 end
redis.call('HSET', KEYS[1], 'o', tonumber(state[2]) + 1, 'b', 0)
redis.call('DEL', KEYS[2])
return tonumber(state[2]) - tonumber(state[3]) + 1
"""
)
"""now -> how many frames there were."""

KNOWN: Final = Script(
    _LIVES
    + """
if not lives(redis.call('HGET', KEYS[1], 'x')) then return false end
return redis.call('HGET', KEYS[3], ARGV[2])
"""
)
"""now, field -> what is known of the stream."""

NOTE: Final = Script(
    _LIVES
    + _STREAMS
    + """
if not lives(redis.call('HGET', KEYS[1], 'x')) then return 0 end
use(ARGV[3], tonumber(ARGV[2]))
remember(ARGV[3], 'e', ARGV[4])
return 1
"""
)
"""now, streams to keep, stream, event id -> whether the session lives."""

CLAIM: Final = Script(
    _LIVES
    + _STREAMS
    + """
if not lives(redis.call('HGET', KEYS[1], 'x')) then return -1 end
local stream = ARGV[3]
local token, till, owner = claim_of(stream)
if not token or tonumber(till) <= now then
  token = string.format('%.0f', redis.call('HINCRBY', KEYS[1], 't', 1))
elseif owner ~= ARGV[4] then
  return 0
end
use(stream, tonumber(ARGV[2]))
remember(stream, 'c', token .. ' ' .. ARGV[5] .. ' ' .. ARGV[4])
return tonumber(token)
"""
)
"""now, streams to keep, stream, owner, until -> token; 0 where another owns it, -1 where it is absent."""

RELEASE: Final = Script(
    _LIVES
    + _STREAMS
    + """
local token, till, owner = claim_of(ARGV[2])
if not lives(redis.call('HGET', KEYS[1], 'x')) or not token then return 0 end
if tonumber(token) ~= tonumber(ARGV[3]) or tonumber(till) <= now then return 0 end
redis.call('HSET', KEYS[3], 'c' .. ARGV[2], token .. ' -inf ' .. owner)
return 1
"""
)
"""now, stream, token -> whether the claim was in force."""
