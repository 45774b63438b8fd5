"""A client that resumes as the SDKs do: by GET and `Last-Event-ID`, of what it has an id for.

It sends a POST again only where it knows that it was not sent on.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final, Protocol

import anyio

from tests.faults.ledger import Heard, Ledger, Outcome
from tests.faults.schedule import Call, Caller
from tests.faults.wire import Broken, Event, Line, Refused, Response, receive, sent
from tests.support.proxying import INITIALIZE, request

NOT_SENT_ON: Final = frozenset(
    {
        "store_down",
        "stopping",
        "upstream_busy",
        "upstream_unreachable",
        "upstream_connect_timeout",
        "restore_failed",
    }
)
"""Reasons after which a request may be sent again."""

_AMBIGUOUS: Final = frozenset({"ambiguous_delivery", "upstream_timeout"})
_PATIENCE: Final = 0.02
"""Seconds before it tries again: as any client waits, only shorter."""
_MOST_RETRY: Final = 0.1
"""Seconds of a server's `retry:` that are honoured; all of it would only make runs longer."""
_REVISION: Final = "2025-11-25"


class Where(Protocol):
    """Knows the replicas."""

    def url(self, number: int) -> str:
        """Return where a replica is, of any number."""

    def index(self, number: int) -> int:
        """Return which one that is."""


class Client:
    """One client with a session of its own."""

    def __init__(self, number: int, plan: Caller, where: Where, ledger: Ledger) -> None:
        self.number = number
        self.session_id = ""
        self.lines: dict[str, Line] = {}
        """The open connections, by the name of what they carry."""
        self._plan = plan
        self._where = where
        self._ledger = ledger
        self._attempts = number

    async def begin(self) -> None:
        """Begin the session."""
        params = {**INITIALIZE["params"], "clientInfo": {"name": f"client-{self.number}", "version": "1"}}  # type: ignore[dict-item]
        message = {**INITIALIZE, "id": f"init-{self.number}", "params": params}
        async with sent(self._where.url(0), "POST", message) as (line, reader):
            response = await receive(line, reader)
            assert response.status == 200, (response.status, await response.json())
            self.session_id = response.headers["mcp-session-id"]
            await response.json()
        initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with sent(self._where.url(0), "POST", initialized, **self._headers()) as (line, reader):
            assert (await receive(line, reader)).status == 202

    async def work(self) -> None:
        """Do all of the plan."""
        async with anyio.create_task_group() as tasks:
            for lane in self._plan.lanes:
                tasks.start_soon(self._calls, lane)
            if self._plan.notifications:
                tasks.start_soon(self._listen)

    async def end(self) -> None:
        """Delete the session."""
        while True:
            with suppress(Broken, Refused):
                async with sent(self._url(), "DELETE", **self._headers()) as (line, reader):
                    response = await receive(line, reader)
                    if response.status != 503:
                        assert response.status in (200, 202, 204, 404), response.status
                        return
            await anyio.sleep(_PATIENCE)

    async def _calls(self, lane: tuple[Call, ...]) -> None:
        for call in lane:
            heard = self._ledger.begin(f"call {call.id}", self.number, call.id)
            outcome = await self._post(heard, call)
            while outcome == "open":
                heard.breaks += 1
                if heard.cursor is None:
                    outcome = "unknown"
                else:
                    outcome = await self._resume(heard)
            self._ledger.finish(heard, outcome)

    async def _post(self, heard: Heard, call: Call) -> Outcome:
        params = {"call": call.id, "events": call.events, "ahead": call.ahead}
        params |= {"padding": call.padding, "polls": call.polls}
        message = request("tools/call", call.id, params)
        while True:
            try:
                outcome = await self._once(heard, "POST", message)
            except Refused:
                outcome = None
            except Broken:
                return "open"
            if outcome is not None:
                return outcome
            await anyio.sleep(_PATIENCE)

    async def _resume(self, heard: Heard) -> Outcome:
        """Take the stream up again, as often as it takes for a connection; then see how far it goes."""
        while True:
            headers = {} if heard.cursor is None else {"Last_Event_ID": heard.cursor}
            try:
                outcome = await self._once(heard, "GET", None, **headers)
            except Refused:
                outcome = None
            except Broken:
                return "open"
            if outcome is not None:
                return outcome
            await anyio.sleep(_PATIENCE)

    async def _listen(self) -> None:
        heard = self._ledger.begin(f"get {self.number}", self.number, None)
        while True:
            outcome = await self._resume(heard)
            if outcome == "answered":
                break
            if outcome == "refused":
                if heard.refusals[-1].startswith("405"):
                    break
                heard.cursor = None
            heard.breaks += 1
            heard.fresh += heard.cursor is None
            await anyio.sleep(_PATIENCE)
        self._ledger.finish(heard, "answered")

    async def _once(self, heard: Heard, method: str, message: Any, **headers: str) -> Outcome | None:
        """Make one request; return what came of it, `None` where it may be made again.

        Raises:
            Refused: there is no connection.
            Broken: it ended too early.
        """
        self._attempts += 1
        heard.replica = self._where.index(self._attempts)
        url = self._where.url(self._attempts)
        async with sent(url, method, message, **self._headers(), **headers) as (line, reader):
            self.lines[heard.name] = line
            try:
                response = await receive(line, reader)
                if response.status == 200 and response.is_event_stream:
                    return await self._read(heard, response)
                return self._judge(heard, response, await response.json())
            finally:
                heard.cuts += line.was_cut
                del self.lines[heard.name]

    async def _read(self, heard: Heard, response: Response) -> Outcome:
        heard.is_event_stream = True
        if heard.call is None and heard.cursor is None:
            heard.begun += 1
            self._ledger.note(f"{heard.name} begins anew")
        async for event in response.events():
            if event.retry is not None:
                await anyio.sleep(min(event.retry / 1000, _MOST_RETRY))
            outcome = self._take(heard, event)
            if outcome is not None:
                return outcome
        # It may be taken up again, if it can: otherwise it ended as if it were complete.
        return "open" if heard.cursor is not None or heard.call is None else "silent"

    def _take(self, heard: Heard, event: Event) -> Outcome | None:
        if event.id is not None:
            heard.cursor = event.id
        if not event.data:
            return None
        return self._hear(heard, json.loads(event.data), event.id)

    def _hear(self, heard: Heard, message: Any, event_id: str | None) -> Outcome | None:
        """Note one message; return how the call has ended, where it has."""
        if heard.call is not None and message.get("id") == heard.call and "error" in message:
            heard.refusals.append(f"in the stream: {message['error']}")
            reason = (message["error"].get("data") or {}).get("reason")
            return "ambiguous" if reason in _AMBIGUOUS else "refused"
        self._ledger.receive(heard, _number(heard, message), event_id)
        if heard.call is None:
            enough = heard.last >= self._plan.notifications
            return "answered" if enough else None
        return "answered" if "result" in message else None

    def _judge(self, heard: Heard, response: Response, body: Any) -> Outcome | None:
        if response.status == 200 and isinstance(body, dict) and body.get("id") == heard.call:
            return self._hear(heard, body, None)
        error = body.get("error") if isinstance(body, dict) else None
        reason = ((error or {}).get("data") or {}).get("reason")
        if reason in NOT_SENT_ON:
            self._ledger.note(f"{heard.name} is told {response.status} {reason}")
            return None
        heard.refusals.append(f"{response.status} {body}")
        self._ledger.note(f"{heard.name} is told {heard.refusals[-1]}")
        mine = isinstance(body, dict) and body.get("id") in (heard.call, None)
        return "ambiguous" if mine and reason in _AMBIGUOUS else "refused"

    def _headers(self) -> dict[str, str]:
        return {"Mcp_Session_Id": self.session_id, "MCP_Protocol_Version": _REVISION}

    def _url(self) -> str:
        self._attempts += 1
        return self._where.url(self._attempts)


def _number(heard: Heard, message: Any) -> int:
    """Return the upstream's number of a message; 0 and below for what belongs elsewhere."""
    if heard.call is None:
        params = message.get("params") or {}
        mine = message.get("method") == "notifications/message" and params["data"]["client"] == heard.client
        return int(params["data"]["number"]) if mine else -1
    if "result" in message:
        return int(message["result"]["number"]) if message["id"] == heard.call else -1
    params = message.get("params") or {}
    return int(params["progress"]) if params.get("progressToken") == heard.call else -1
