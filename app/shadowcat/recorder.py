"""Writes what passes to the store: behind the traffic, in batches, within bounds."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio
import msgspec

from shadowcat.ambient import AmbientSessions, is_ambient
from shadowcat.counters import Counters
from shadowcat.readers import Arrival, Notice
from shadowcat.settings import Settings
from shadowcat.turns import Turns
from shadowcat.waiting import FRAME_OVERHEAD, NOT_READ, Waiting, without_outrun
from shadowcat_stores import Direction, Frame, MessageEnvelope, SessionStore, StoreError

logger = logging.getLogger("shadowcat.recorder")

_BATCH_FRAMES: Final = 1000
_RETRY_EVERY: Final = 0.5
"""Seconds between attempts while the store refuses frames."""
_AWAITED: Final = frozenset({"request", "response", "error"})
"""What a client acts on: its next request may come to another replica."""


class Recorder:
    """The one writer of frames in this process.

    Recording appends to a list (0.5 µs); one task hands what has gathered to the store every `record_window`
    seconds, and at once where other replicas record the session as well: the client's next request may be
    theirs, and must not come before ours on the tape. While the store does not take it, frames wait within
    `record_queue_bytes`; beyond that new ones are dropped, counted and logged, the tape gets a frame of kind
    `gap` in their place, and the traffic goes on. Frames that newer ones have pushed out of the window while
    they waited are not written: the store would let them go at once.
    """

    def __init__(
        self,
        store: SessionStore,
        settings: Settings,
        counters: Counters,
        is_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin; `is_alone` says whether no other replica is there to record anything."""
        self.enabled = settings.tape != "off"
        self._store = store
        self._keep = settings.window
        self._interval = settings.record_window
        self.durable_first = self.enabled and settings.record_window == 0
        self._room = settings.record_queue_bytes
        self._timeout = settings.store_timeout
        self._counters = counters
        self._clock = store.clock
        self._waiting: list[Waiting] = []
        self._waiting_bytes = 0
        self._unseen = 0
        """How many of those that wait were not held against the window."""
        self._tried = 0
        """How many of the oldest that wait may be in the store, as a write that failed does not say."""
        self._recorded = 0
        """How many frames have ever been recorded, in their order."""
        self._written = 0
        """How many of them do not wait any more: up to here, none does."""
        self._progress = asyncio.Event()
        self._dropped: Counter[str] = Counter()
        self._failing = False
        self._most = _BATCH_FRAMES
        self._turns = Turns() if store.shared else None
        self.ambient = AmbientSessions(store, settings, counters)
        self._is_alone = is_alone
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        """Runs while somebody waits, until there is progress."""
        self._lock = anyio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._flushes: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many frames the store has not taken yet."""
        return self._recorded - self._written

    def client_sent(
        self, session_id: str, messages: Sequence[MessageEnvelope], stream: str | None = None
    ) -> None:
        """Record what the client sent, to be answered on the stream."""
        self._record(session_id, "client", (Arrival(list(messages)),), stream)

    def server_sent(
        self, session_id: str, arrivals: Sequence[Arrival | Notice], stream: str | None = None, token: int = 0
    ) -> None:
        """Record what the server sent on the stream as its owner, or in a plain body."""
        self._record(session_id, "server", arrivals, stream, token)

    async def pass_on(
        self, session_id: str, arrivals: Sequence[Arrival | Notice], stream: str | None, token: int = 0
    ) -> None:
        """Record what the server sent, and return when it may go on."""
        if arrivals:
            self.server_sent(session_id, arrivals, stream, token)
            if self.durable_first or self._turns is not None:
                awaited = any(
                    message.kind in _AWAITED
                    for each in arrivals
                    if isinstance(each, Arrival)
                    for message in each.messages
                )
                await self.settle(ends_turn_of=session_id if awaited else None)

    def holds(self, session_id: str) -> bool:
        """Return whether the session's client may act on a message only once it is in the store.

        So it is where everything must be durable first, and where another replica may record what the client
        does next, and store it before what came first. Without a session nothing has to be in order.
        """
        if not self.enabled:
            return False
        if self.durable_first or self._turns is None or is_ambient(session_id):
            return self.durable_first
        return not (self._is_alone() or self._turns.is_alone(session_id))

    async def settle(self, ends_turn_of: str | None = None) -> None:
        """Return when what was recorded may be forwarded: at once, unless it is to be in the store before.

        While the store takes nothing nobody waits for it: the traffic goes on, the frames wait.

        Args:
            ends_turn_of: the session whose client may act on what is forwarded.
        """
        if not self._waiting_bytes or self._failing:
            return
        if not (self.durable_first or (ends_turn_of is not None and self.holds(ends_turn_of))):
            return
        recorded = self._recorded
        self._due.set()
        while self._written < recorded and not self._failing:
            if self._patience is None:
                # One timer for all who wait, not a scope for each: that would cost 10 µs.
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(self._timeout, self._lose_patience)
            await self._progress.wait()

    def _lose_patience(self) -> None:
        self._fails(f"it did not answer within {self._timeout:g} s")

    def _record(
        self,
        session_id: str,
        direction: Direction,
        arrivals: Sequence[Arrival | Notice],
        stream: str | None,
        token: int = 0,
    ) -> None:
        if not self.enabled:
            return
        now = self._clock()
        unread: Frame | None = None
        for arrival in arrivals:
            if isinstance(arrival, Notice):
                if unread is None:
                    unread = Frame(
                        session_id=session_id,
                        direction=direction,
                        envelope=NOT_READ,
                        at=now,
                        stream=stream,
                        token=token,
                    )
                self._add(unread, len(arrival.raw), arrival)
                continue
            for envelope in arrival.messages:
                frame = Frame(
                    session_id=session_id,
                    direction=direction,
                    envelope=envelope,
                    at=now,
                    stream=stream,
                    position=arrival.position,
                    event=arrival.event,
                    event_id=arrival.event_id,
                    token=token,
                )
                self._add(frame, len(envelope.raw))
        if self._timer is None:
            self._set_timer()

    def _add(self, frame: Frame, length: int, notice: Notice | None = None) -> None:
        """Let the frame wait, if there is room for it."""
        size = length + FRAME_OVERHEAD
        if self._waiting_bytes + size > self._room:
            self._leave_out_old()
            if self._waiting_bytes + size > self._room:
                self._drop(frame.session_id)
                return
        if self._dropped and frame.session_id in self._dropped:
            self._mark_gap(frame.session_id)
        self._wait(frame, size, notice)

    def _set_timer(self) -> None:
        delay = _RETRY_EVERY if self._failing else self._interval
        self._timer = asyncio.get_running_loop().call_later(delay, self._due.set)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, frame: Frame, size: int, notice: Notice | None = None) -> None:
        self._recorded += 1
        self._waiting.append(Waiting(self._recorded, size, frame, notice))
        self._waiting_bytes += size
        self._unseen += 1

    def _leave_out_old(self) -> None:
        """Let those go that newer ones would push out of the window as soon as they are written."""
        if self._keep is None or 2 * self._unseen < len(self._waiting) - self._tried:
            return
        self._unseen = 0
        waiting = self._waiting[self._tried :]
        kept = without_outrun(waiting, self._keep)
        self._counters.frames_outrun += len(waiting) - len(kept)
        self._waiting_bytes -= sum(each.size for each in waiting) - sum(each.size for each in kept)
        self._waiting[self._tried :] = kept

    def _drop(self, session_id: str) -> None:
        self._counters.frames_dropped += 1
        if not self._dropped:
            logger.error("the store does not keep up: dropping frames from the tapes; the traffic goes on")
        self._dropped[session_id] += 1

    def _mark_gap(self, session_id: str) -> None:
        """Put a frame where others are missing: it says how many."""
        raw = msgspec.json.encode({"dropped": self._dropped.pop(session_id)})
        self._wait(
            Frame(
                session_id=session_id,
                direction="server",
                envelope=MessageEnvelope(raw, "gap"),
                at=self._clock(),
            ),
            len(raw) + FRAME_OVERHEAD,
        )

    def _mark_gaps(self) -> None:
        # Not before there is room: as long as the store takes nothing, marks would pile up.
        if not self._waiting:
            for session_id in tuple(self._dropped):
                self._mark_gap(session_id)

    def start(self) -> None:
        """Begin to write."""
        self._due = asyncio.Event()  # bound to this loop: an app may be started again in another
        self._stop_timer()
        self._set_timer()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="shadowcat-recorder")

    async def stop(self) -> None:
        """Write what waits, then end."""
        async with self._lock:
            # The task is not in a write now: cancelled there, it would leave nobody to say how that ended.
            task, self._task = self._task, None
            if task is not None:
                task.cancel()
        if task is not None:
            with suppress(asyncio.CancelledError):
                await task
        self._stop_timer()
        await self.flush()
        if self._waiting:
            self._counters.frames_dropped += len(self._waiting)
            logger.error("stopped while the store takes no frames: %d are lost", len(self._waiting))

    async def flush(self) -> None:
        """Return when all that was recorded before is in the store, or the store refused it."""
        if not (self._waiting or self._dropped or self._lock.locked()):
            return
        # In a task of its own: cancelled in a write, it would leave nobody to say how that ended.
        flushing = asyncio.get_running_loop().create_task(self._write_all())
        self._flushes.add(flushing)
        flushing.add_done_callback(self._flushes.discard)
        await asyncio.shield(flushing)

    async def _write_all(self) -> None:
        async with self._lock:
            while self._waiting or self._dropped:
                if not await self._begin_write():
                    return

    async def _begin_write(self) -> bool:
        self._mark_gaps()
        if self._waiting and not await self._write():
            return False
        self._mark_gaps()
        return True

    async def _write(self) -> bool:
        if len(self._waiting) > self._most:
            self._leave_out_old()
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        frames = [each.whole() for each in batch]
        try:
            await self.ambient.prepare(frames)
            seqs = await self._store.add_frames(frames, keep=self._keep)
        except StoreError as exc:
            self._try_again(batch)
            self._fails(str(exc))
            return False
        except Exception as exc:  # noqa: BLE001 - one frame that no store can keep must not be the last one
            self._refused(batch, exc)
            return True
        if self._failing:
            logger.warning("the store takes frames again")
        self._failing = False
        self._most = min(2 * self._most, _BATCH_FRAMES)
        self._wait_no_more(batch)
        if self._turns is not None:
            self._turns.wrote(frames, seqs)
        if 0 in seqs:
            self.ambient.wrote(frames, seqs)
        # What was not stored belonged to a session that ended meanwhile.
        self._counters.frames_recorded += sum(1 for seq in seqs if seq)
        return True

    def _try_again(self, batch: list[Waiting]) -> None:
        self._waiting = batch + self._waiting
        self._tried = max(self._tried, len(batch))

    def _wait_no_more(self, batch: list[Waiting]) -> None:
        self._tried = max(0, self._tried - len(batch))
        self._waiting_bytes -= sum(each.size for each in batch)
        self._written = batch[-1].number
        self._tell()

    def _tell(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._progress.set()
        self._progress = asyncio.Event()

    def _fails(self, reason: str) -> None:
        if not self._failing:
            logger.error("the store does not take frames; they wait: %s", reason)
        self._failing = True
        self._tell()

    def _refused(self, batch: list[Waiting], error: Exception) -> None:
        """Halve the batch until the frame is found that is at fault, and leave that one out."""
        if len(batch) > 1:
            self._try_again(batch)
            self._most = len(batch) // 2
            return
        self._wait_no_more(batch)
        self._counters.frames_dropped += 1
        self._dropped[batch[0].frame.session_id] += 1
        logger.error("a frame that cannot be stored is dropped from its tape: %r", error)

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._stop_timer()
            async with self._lock:
                # One batch a window: what gathers while it is written is worth more in the next one.
                await self._begin_write()
            if len(self._waiting) >= self._most and not self._failing:
                self._due.set()
            elif self._waiting:
                self._set_timer()
