"""One upstream body on its way to the client, as it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

from shadowcat.readers import Arrival, Reader
from shadowcat.recorder import Recorder
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat_stores import MessageEnvelope

_MOST_HELD: Final = 100
"""Events before the answer to `initialize` that are held back with it."""


class Relay:
    """One upstream body on its way: what was held back of it, the rest, and who reads along."""

    def __init__(self, response: UpstreamResponse, reader: Reader | None) -> None:
        self.reader = reader
        # A JSON message is known at the body's end only: its last chunk waits where it must be durable first.
        self._keeps_last = response.media is Media.JSON
        self._chunks = aiter(response)
        self._held: list[bytes] = []
        self._arrived: list[Arrival] = []
        self._ended = False

    async def hold_until_answer(self, asked: MessageEnvelope, limit: int) -> MessageEnvelope | None:
        """Read on until the answer to the request has come; `None` where the body ends or `limit` bytes pass
        without it. What was read is held back and not lost."""
        held = 0
        while self.reader is not None and held <= limit and len(self._arrived) <= _MOST_HELD:
            chunk = await anext(self._chunks, None)
            self._ended = chunk is None
            arrivals = self.reader.end() if chunk is None else self.reader.feed(chunk)
            self._arrived += arrivals
            if chunk is not None:
                self._held.append(chunk)
                held += len(chunk)
            if answer := _answer_among(arrivals, asked):
                return answer
            if self._ended:
                break
        return None

    def body(self) -> AsyncGenerator[bytes, None]:
        """Iterate over all chunks."""
        return self._all() if self._held or self._ended else self._chunks

    async def _all(self) -> AsyncGenerator[bytes, None]:
        for chunk in self._held:
            yield chunk
        self._held.clear()
        if not self._ended:
            async for chunk in self._chunks:
                yield chunk

    async def recorded(
        self, recorder: Recorder, session_id: str, stream: str | None
    ) -> AsyncGenerator[bytes, None]:
        """Iterate over all chunks; what arrives in them is recorded before they go on."""
        reader = self.reader
        if self._arrived:
            await recorder.pass_on(session_id, self._arrived, stream)
        for chunk in self._held:
            yield chunk
        self._held.clear()
        self._arrived.clear()
        if self._ended:
            return
        last = b""
        keeps_last = self._keeps_last and recorder.holds(session_id)
        async for chunk in self._chunks:
            if reader is not None and (arrived := reader.feed(chunk)):
                await recorder.pass_on(session_id, arrived, stream)
            yield last if keeps_last else chunk
            last = chunk
        if reader is not None and (arrived := reader.end()):
            await recorder.pass_on(session_id, arrived, stream)
        if keeps_last:
            yield last


def _answer_among(arrivals: Sequence[Arrival], asked: MessageEnvelope) -> MessageEnvelope | None:
    for arrival in arrivals:
        for message in arrival.messages:
            if message.kind in ("response", "error") and message.id == asked.id:
                return message
    return None
