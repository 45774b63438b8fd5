"""Reading the outside of JSON-RPC messages."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowcat.envelope import read_envelopes, read_server_messages, stated_version
from shadowcat.errors import NotJSON, NotJSONRPC
from shadowcat_stores import MessageEnvelope

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
ids = st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(exclude_categories=["Cs"]))
methods = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("message", "kind", "method", "message_id"),
    [
        ({"id": 1, "method": "ping"}, "request", "ping", 1),
        ({"id": "a", "method": "ping", "params": [1]}, "request", "ping", "a"),
        ({"id": None, "method": "ping"}, "request", "ping", None),
        ({"id": 2**64 - 1, "method": "ping"}, "request", "ping", 2**64 - 1),
        ({"id": 2**70, "method": "ping"}, "request", "ping", str(2**70)),
        ({"id": 1.5, "method": "ping"}, "request", "ping", 1.5),
        ({"method": "notifications/x"}, "notification", "notifications/x", None),
        ({"id": 1, "result": None}, "response", None, 1),
        ({"id": None, "error": {"code": 1}}, "error", None, None),
    ],
)
def test_kinds(message: dict[str, object], kind: str, method: str | None, message_id: object) -> None:
    raw = json.dumps({"jsonrpc": "2.0", **message}).encode()
    assert read_envelopes(raw) == [MessageEnvelope(raw, kind, method, message_id)]  # type: ignore[arg-type]


@given(st.lists(st.tuples(ids, methods, json_values), min_size=1, max_size=5), st.booleans())
def test_what_is_read_is_what_was_written(
    messages: list[tuple[object, str, object]], ascii_only: bool
) -> None:
    written = [
        {"jsonrpc": "2.0", "id": message_id, "method": method, "params": params}
        for message_id, method, params in messages
    ]
    batch = read_envelopes(json.dumps(written, ensure_ascii=True).encode())
    single = read_envelopes(json.dumps(written[0], ensure_ascii=True).encode())
    assert [(each.id, each.method, each.kind) for each in batch] == [
        (message_id, method, "request") for message_id, method, _ in messages
    ]
    assert [json.loads(each.raw) for each in batch] == written
    assert (single[0].id, single[0].method) == messages[0][:2]


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        envelopes = read_envelopes(body)
    except (NotJSON, NotJSONRPC):
        assert read_server_messages(body) == [MessageEnvelope(body, "other")]
    else:
        assert envelopes


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":%b}' % (b"[" * 9000 + b"]" * 9000),
        b"[" * 9000 + b"]" * 9000,
    ],
)
def test_what_is_nested_too_deep_passes_unread(body: bytes) -> None:
    assert read_envelopes(body) == [MessageEnvelope(body, "other")]


@pytest.mark.parametrize("key", ["result", "error"])
def test_lone_surrogates_are_legal_json(key: str) -> None:
    request = b'{"jsonrpc":"2.0","id":5,"method":"m","params":"\\ud800"}'
    assert read_envelopes(request)[0].id == 5
    answer = b'{"jsonrpc":"2.0","id":5,"%b":"\\ud800"}' % key.encode()
    assert read_envelopes(answer)[0].kind == ("response" if key == "result" else "error")
    assert [each.id for each in read_envelopes(b"[" + request + b"," + answer + b"]")] == [5, 5]


@pytest.mark.parametrize("strange", [b"", b'"\\ud800",'])
def test_a_batch_is_bounded(strange: bytes) -> None:
    message = b'{"jsonrpc":"2.0","method":"x"}'
    assert len(read_envelopes(b"[" + b",".join([message] * 1000) + b"]")) == 1000
    with pytest.raises(NotJSONRPC, match="1 to 1000"):
        read_envelopes(b"[" + strange + b",".join([message] * 1001) + b"]")


@pytest.mark.parametrize("body", [b'"\\ud800"', b'{"jsonrpc":"2.0","id":"\\ud800","method":5}'])
def test_lone_surrogates_do_not_make_a_message(body: bytes) -> None:
    with pytest.raises(NotJSONRPC):
        read_envelopes(body)


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b'{"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}', "2026-07-28"),
        (b'{"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":5}}}', None),
        (b'{"params":{"_meta":{}}}', None),
        (b'{"params":[]}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b'{"params":{"_meta":{"x":' + b"[" * 9000 + b"]" * 9000 + b"}}}", None),
    ],
)
def test_the_version_stated_in_the_body(body: bytes, version: str | None) -> None:
    assert stated_version(body) == version
