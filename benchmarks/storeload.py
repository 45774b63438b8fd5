"""Measures one store in a process of its own, which `benchmarks.stores` starts; it prints JSON.

python -m benchmarks.storeload operations --url memory:// --seconds 0.4
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from shadowcat.counters import Counters
from shadowcat.readers import Arrival
from shadowcat.recorder import Recorder
from shadowcat.settings import Settings, Tape
from shadowcat_stores import MessageEnvelope, SessionStore, store_from_url

from .processes import rss_bytes
from .storeops import Operations, as_json, fill, measure, new_frames

CONCURRENCIES = (1, 32)
SIZES = (1_000, 10_000, 100_000)
PACE = 0.002
"""Seconds between two bursts of frames."""
BURST = 16
ROUNDS = 5
TAPES: tuple[Tape, ...] = ("off", "full")


async def operations(store: SessionStore, given: argparse.Namespace) -> Any:
    """Each operation at each concurrency, with 1,000 sessions in the store at first."""
    work = Operations(store, await fill(store, 1_000))
    await work.prepare()
    found = {}
    for workers in CONCURRENCIES:
        timings = {
            name: await measure(operation, workers, given.seconds, given.server)
            for name, operation in work.all().items()
            if name != "create_session"
        }
        # Last: it makes the store larger.
        timings["create_session"] = await measure(work.create, workers, given.seconds, given.server)
        found[workers] = as_json(timings)
    return found


async def growth(store: SessionStore, given: argparse.Namespace) -> Any:
    """What operations cost as the store grows, one at a time."""
    found: dict[int, Any] = {}
    ids: list[str] = []
    for size in SIZES:
        ids += await fill(store, size - len(ids), f"n{size}")
        cursor = await _middle(store, size)
        work = Operations(store, ids)

        def list_page(number: int, worker: int, cursor: str | None = cursor) -> Awaitable[object]:
            return store.list_sessions(limit=100, cursor=cursor)

        def count(number: int, worker: int) -> Awaitable[object]:
            return store.count_sessions()

        timings = {
            "get_session": await measure(work.get, 1, given.seconds, given.server),
            "touch_session": await measure(work.touch, 1, given.seconds, given.server),
            "page of 100 from the middle": await measure(list_page, 1, given.seconds, given.server),
            "count_sessions": await measure(count, 1, given.seconds, given.server),
        }
        await asyncio.sleep(0.2)  # what the store does behind
        made: list[str] = []

        async def create(number: int, worker: int, work: Operations = work, made: list[str] = made) -> None:
            made.append((await work.create(number, worker)).id)

        timings["create_session"] = await measure(create, 1, given.seconds, given.server)
        for session_id in made:
            await store.delete_session(session_id)
        found[size] = as_json(timings)
    return found


async def _middle(store: SessionStore, size: int) -> str | None:
    cursor = None
    for _ in range(size // 2 // 500):
        cursor = (await store.list_sessions(limit=500, cursor=cursor)).cursor
    return cursor


async def memory(store: SessionStore, given: argparse.Namespace) -> Any:
    """Bytes of this process per idle session that is stored, by the resident memory."""
    pid = int(Path("/proc/self").readlink().name)
    await fill(store, 100)
    gc.collect()
    found = {}
    before, stored = rss_bytes(pid), 0
    for size in SIZES[1:]:
        ids = await fill(store, size - stored, f"n{size}")
        stored = size
        for session_id in ids:
            await store.touch_session(session_id, time.time() + 2 * 86_400.0)
        del ids
        gc.collect()
        found[size] = (rss_bytes(pid) - before) / size
    return found


async def recorder(store: SessionStore, given: argparse.Namespace) -> Any:
    """µs of CPU that a recorded frame costs, by case: the loop's thread, the others, the server."""
    ids = await fill(store, 16)
    cases: dict[str, Callable[[Recorder, int], None]] = {
        "300 B, in a plain body": _plain(ids, 300),
        "3 KB, in a plain body": _plain(ids, 3000),
        "300 B, in a stream with an event id": _streamed(ids, 300),
    }
    found = {}
    for name, record in cases.items():
        # In turns, so that a busy moment of the machine hits both.
        rounds = [[await _recorded(store, tape, record, given) for tape in TAPES] for _ in range(ROUNDS)]
        found[name] = {
            part: median(busy[part] for _, busy in rounds) - median(idle[part] for idle, _ in rounds)
            for part in ("loop", "threads")
        }
    return found


def _plain(ids: list[str], size: int) -> Callable[[Recorder, int], None]:
    arrivals = [Arrival([_envelope(size)])]
    return lambda recorder, number: recorder.server_sent(ids[number % len(ids)], arrivals)


def _streamed(ids: list[str], size: int) -> Callable[[Recorder, int], None]:
    messages = [_envelope(size)]

    def record(recorder: Recorder, number: int) -> None:
        # Ten events on each stream, as a call with some progress has.
        event = Arrival(messages, position=number % 10 + 1, event_id=f"e{number}")
        recorder.server_sent(ids[number // 10 % len(ids)], [event], f"post-{number // 10}")

    return record


def _envelope(size: int) -> MessageEnvelope:
    return new_frames("", size, 1)[0].envelope


async def _recorded(
    store: SessionStore, tape: Tape, record: Callable[[Recorder, int], None], given: argparse.Namespace
) -> dict[str, float]:
    counters = Counters()
    kept = Recorder(store, Settings(tape=tape), counters)
    kept.start()
    number, bursts = 0, round(given.seconds / PACE)
    loop, process = time.thread_time(), time.process_time()
    for _ in range(bursts):
        for _ in range(BURST):
            record(kept, number)
            number += 1
        await asyncio.sleep(PACE)
    await kept.stop()
    loop, process = time.thread_time() - loop, time.process_time() - process
    if tape == "full":
        assert (counters.frames_recorded, counters.frames_dropped) == (number, 0), vars(counters)
    return {"loop": 1e6 * loop / number, "threads": 1e6 * (process - loop) / number}


PARTS = {each.__name__: each for each in (operations, growth, memory, recorder)}


async def run(given: argparse.Namespace) -> Any:
    async with store_from_url(given.url) as store:
        return await PARTS[given.part](store, given)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storeload", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each measurement")
    parser.add_argument("--server", type=int, help="the process id of the store's server")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
