"""The MCP messages that the load generator sends and the stub upstream answers, as bytes on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

SESSION_REVISION = "2025-11-25"
STATELESS_REVISION = "2026-07-28"
CLIENT = {"name": "shadowcat-benchmarks", "version": "1"}
META = "io.modelcontextprotocol/"

NUMBER = b"@@@@@@@@@@"
"""Stands for a call's number in a template. As long as every number is, so Content-Length stays right."""
FIRST_NUMBER = 1_000_000_000

PADDING = "a payload of the length that a short tool argument has in practice"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str = "/mcp"

    @classmethod
    def of(cls, url: str) -> Target:
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, parts.path or "/mcp")


class Template:
    """Bytes that are complete but for the call's number: `fill` costs one join."""

    def __init__(self, text: bytes) -> None:
        self.parts = text.split(NUMBER)

    def fill(self, number: int) -> bytes:
        return (b"%d" % number).join(self.parts)


def result(number: bytes, text: bytes) -> bytes:
    """What the stub answers a call with; `text` is the JSON string it was called with."""
    return b'{"jsonrpc":"2.0","id":%b,"result":{"content":[{"type":"text","text":%b}]}}' % (number, text)


EXPECTED = Template(result(NUMBER, b'"call %b: %b"' % (NUMBER, PADDING.encode())))


def initialize(target: Target) -> bytes:
    params = {"protocolVersion": SESSION_REVISION, "capabilities": {}, "clientInfo": CLIENT}
    return _post(target, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, {})


def initialized(target: Target, session: str) -> bytes:
    return _post(target, {"jsonrpc": "2.0", "method": "notifications/initialized"}, _session(session))


def call(target: Target, tool: str, session: str | None, **arguments: object) -> Template:
    """`tools/call` within a session, or as the revision without sessions says it where there is none."""
    number = NUMBER.decode()
    text = f"call {number}: {PADDING}"
    params: dict[str, object] = {"name": tool, "arguments": {"text": text} | arguments}
    headers = _session(session) if session else _stateless(tool)
    if not session:
        params["_meta"] = {
            f"{META}protocolVersion": STATELESS_REVISION,
            f"{META}clientInfo": CLIENT,
            f"{META}clientCapabilities": {},
        }
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    return Template(_post(target, message, headers))


def get(target: Target, session: str, stream: str = "") -> bytes:
    """The session's standalone stream; `stream` tells the stub what to send on it."""
    headers = {"Accept": "text/event-stream"} | _session(session)
    return _request(target, "GET", headers | ({"X-Stub-Stream": stream} if stream else {}))


def resume(target: Target, session: str, last_id: str) -> bytes:
    """Come back to the stream that had the event of this id."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": last_id}
    return _request(target, "GET", headers | _session(session))


def delete(target: Target, session: str) -> bytes:
    return _request(target, "DELETE", _session(session))


def _session(session: str) -> dict[str, str]:
    return {"Mcp-Session-Id": session, "MCP-Protocol-Version": SESSION_REVISION}


def _stateless(tool: str) -> dict[str, str]:
    return {"MCP-Protocol-Version": STATELESS_REVISION, "Mcp-Method": "tools/call", "Mcp-Name": tool}


def _post(target: Target, message: Mapping[str, object], headers: dict[str, str]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).replace(f'"{NUMBER.decode()}"', NUMBER.decode())
    kinds = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    return _request(target, "POST", kinds | headers, body.encode())


def _request(target: Target, method: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    fixed = {"Host": f"{target.host}:{target.port}", "User-Agent": "shadowcat-benchmarks"}
    length = {"Content-Length": str(len(body))} if body else {}
    lines = [f"{name}: {value}" for name, value in (fixed | headers | length).items()]
    head = "\r\n".join([f"{method} {target.path} HTTP/1.1", *lines, "", ""])
    return head.encode() + body
