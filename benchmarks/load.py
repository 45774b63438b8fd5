"""The load generator: N clients, each with its session and its connection, call a tool one after another.

Every answer is checked: the status, the request's id and the text that was sent along, which differs in each
call. `python -m benchmarks.load --url URL --tool echo --connections 16 --seconds 2` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop

from . import messages
from .messages import EXPECTED, FIRST_NUMBER, Target, Template
from .wire import PATIENCE, Answer, Connection, Lost, open_session


@dataclass(eq=False)
class Worker(Connection):
    """One client: sends its next call when the last one is answered."""

    load: Load = field(kw_only=True)
    template: Template | None = None
    number: int = 0
    started: float = 0.0

    def next(self) -> None:
        load = self.load
        number = load.take()
        if not number or self.transport.is_closing():
            self.number = 0
            return load.finished(self)
        assert self.template
        self.number = number
        self.sent += 1
        self.started = perf_counter()
        return self.transport.write(self.template.fill(number))

    def answered(self, answer: Answer) -> None:
        if not self.number:
            return super().answered(answer)
        self.load.note(self.started, perf_counter(), answer, self.number)
        return self.next()

    def lost(self, reason: str) -> None:
        if not self.number:
            return super().lost(reason)
        self.number = 0
        self.load.errors[f"connection lost: {reason}"] += 1
        return self.load.finished(self)


@dataclass(eq=False)
class Load:
    """A run and what came of it."""

    target: Target
    tool: str
    connections: int
    seconds: float = 0.0
    warmup: float = 0.0
    requests: int = 0
    """How many calls to make; 0 = as many as fit into `seconds`."""
    ledger: str = ""
    """The file in which a real server counts what arrives; its answers may say more than the stub's."""
    errors: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.number = FIRST_NUMBER
        self.last = FIRST_NUMBER + (self.requests or 10**9)
        self.active: set[Worker] = set()
        self.restart()

    def restart(self) -> None:
        """Forget what was measured so far: the warm-up is over."""
        self.begun = self.ended = perf_counter()
        self.latencies = array("d")

    async def run(self) -> dict[str, Any]:
        """Open the sessions, call, close the sessions; what happened, as JSON can say it."""
        workers = [await Worker.open(self.target, load=self) for _ in range(self.connections)]
        sessions = [await open_session(worker, self.target) for worker in workers]
        self.done = asyncio.Event()
        self.active.update(workers)
        before = entries(self.ledger)
        self.restart()
        for worker, session in zip(workers, sessions, strict=True):
            worker.template = messages.call(self.target, self.tool, session)
            worker.next()
        await self.watch()
        arrived = entries(self.ledger) - before
        for worker, session in zip(workers, sessions, strict=True):
            await self.leave(worker, session)
        ledger = {"requests": arrived["r"], "runs": arrived["t"]}
        return self.summary(sum(worker.sent for worker in workers)) | {"ledger": ledger}

    async def watch(self) -> None:
        """Wait for the end, and not for ever: at the worst a fixed number of calls takes 10 ms each."""
        if not self.requests:
            await asyncio.sleep(self.warmup)
            self.restart()
            await asyncio.sleep(self.seconds)
            self.last = self.number
        try:
            await asyncio.wait_for(self.done.wait(), PATIENCE + self.requests / 100)
        except TimeoutError:
            self.errors["unanswered"] += len(self.active)

    async def leave(self, worker: Worker, session: str) -> None:
        try:
            if worker not in self.active:
                await asyncio.wait_for(worker.send(messages.delete(self.target, session)), PATIENCE)
        except (Lost, TimeoutError) as error:
            self.errors[f"DELETE: {error!r}"] += 1
        worker.abort()

    # what the workers call

    def take(self) -> int:
        """The next call's number; 0 when enough calls were made."""
        if self.number >= self.last:
            return 0
        self.number += 1
        return self.number - 1

    def note(self, started: float, now: float, answer: Answer, number: int) -> None:
        if answer.status != 200:
            self.errors[f"status {answer.status}"] += 1
        elif not self.is_right(answer.body, number):
            self.errors["wrong answer"] += 1
        self.latencies.append(now - started)
        self.ended = now

    def is_right(self, body: bytes, number: int) -> bool:
        return answers(body, number) if self.ledger else right(body, EXPECTED.fill(number))

    def finished(self, worker: Worker) -> None:
        self.active.discard(worker)
        if not self.active:
            self.done.set()

    def summary(self, sent: int) -> dict[str, Any]:
        count, seconds = len(self.latencies), self.ended - self.begun
        return {
            "requests": count,
            "calls": self.number - FIRST_NUMBER,
            "seconds": round(seconds, 3),
            "rate": round(count / seconds, 1) if count else 0.0,
            "latency_us": percentiles(sorted(self.latencies)) if count else {},
            "sent": sent,
            "errors": dict(self.errors),
        }


def percentiles(latencies: list[float], shares: tuple[int, ...] = (50, 90, 99, 100)) -> dict[str, int]:
    """In µs, of what is sorted."""
    last = len(latencies) - 1
    return {f"p{share}": round(1e6 * latencies[last * share // 100]) for share in shares}


def right(body: bytes, expected: bytes) -> bool:
    """Whether the body is the expected message, plain or as the one `data` of an SSE stream."""
    if body == expected:
        return True
    data = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")] or [body]
    try:
        return len(data) == 1 and (data[0] == expected or bool(json.loads(data[0]) == json.loads(expected)))
    except ValueError:
        return False


def answers(body: bytes, number: int) -> bool:
    """Whether the body, or an event of it, brings the text that was sent, whatever else there is."""
    wanted = json.loads(EXPECTED.fill(number))
    for data in [line[5:] for line in body.splitlines() if line.startswith(b"data:")] or [body]:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            message = json.loads(data)
            if message["id"] == number:
                return bool(message["result"]["content"][0]["text"] == wanted["result"]["content"][0]["text"])
    return False


def entries(ledger: str) -> Counter[str]:
    """How often each sign is in the file."""
    return Counter(Path(ledger).read_text()) if ledger else Counter()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--tool", default="echo")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warmup", type=float, default=0.3)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--ledger", default="")
    given = vars(parser.parse_args())
    load = Load(Target.of(given.pop("url")), **given)
    print(json.dumps(uvloop.run(load.run())))


if __name__ == "__main__":
    main()
