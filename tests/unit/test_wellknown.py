"""Addresses in authorization documents: whatever the bytes, and only where they are the upstream's."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowcat.wellknown import Addresses, metadata_path, origin

HERE = Addresses("https://proxy.example/a", "/x/mcp", "http://up:3001/v1/mcp")
urls = st.sampled_from(
    [
        "http://up:3001",
        "http://UP:3001/",
        "http://up:3001/v1/mcp",
        "http://up/v1/mcp",
        "https://proxy.example",
        "",
        "x",
    ]
)
json_values = st.recursive(
    st.none() | st.integers() | st.text() | urls, lambda each: st.lists(each, max_size=3)
)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_taken(body: bytes) -> None:
    for is_server in (False, True):
        assert isinstance(HERE.of_resource(body, is_authorization_server=is_server), bytes)
    assert isinstance(HERE.of_authorization_server(body), bytes)
    HERE.challenge([(b"www-authenticate", body)])
    HERE.metadata_target([(b"www-authenticate", body)])
    assert HERE.of_redirect([(b"x", body)]) == [(b"x", body)]
    HERE.of_redirect([(b"location", body)])


@given(
    st.dictionaries(st.text() | st.sampled_from(["resource", "issuer", "authorization_servers"]), json_values)
)
def test_only_addresses_change(document: dict[str, object]) -> None:
    changed = {"resource", "issuer", "authorization_servers", "signed_metadata"}
    body = json.dumps(document).encode()
    written = (
        HERE.of_resource(body, is_authorization_server=True),
        HERE.of_authorization_server(body),
    )
    for each in written:
        found = msgspec.json.decode(each)
        assert {name: found[name] for name in found if name not in changed} == {
            name: document[name] for name in document if name not in changed
        }


@pytest.mark.parametrize(
    ("resource", "is_known"),
    [
        ("http://up:3001/v1/mcp", True),
        ("http://up:3001/v1/mcp/", True),
        ("http://up:3001/v1", True),
        ("http://up:3001", True),
        ("http://UP:3001/", True),
        ("http://up:3001/v1/mc", False),
        ("http://up:3001/v1/mcp/more", False),
        ("http://up/v1/mcp", False),
        ("https://up:3001/v1/mcp", False),
        ("http://up:99999/v1/mcp", False),
    ],
)
def test_a_resource_is_the_upstream_or_above_it(resource: str, is_known: bool) -> None:
    body = json.dumps({"resource": resource}).encode()
    expected = "https://proxy.example/a/x/mcp" if is_known else resource
    assert json.loads(HERE.of_resource(body, is_authorization_server=False)) == {"resource": expected}


@given(st.text(st.characters(max_codepoint=255)))
def test_where_the_metadata_is_can_stand_in_a_request(path: str) -> None:
    header = f'Bearer resource_metadata="http://up:3001/{path}"'.encode("latin-1")
    target = HERE.metadata_target([(b"www-authenticate", header)])
    assert target is None or (target.isascii() and target.startswith("/") and " " not in target)


def test_a_location_that_cannot_be_read_passes_as_it_is() -> None:
    for location in (b"http://[::1", b"/next?a=1", b"\xff", b""):
        assert HERE.of_redirect([(b"location", location)]) == [(b"location", location)]


def test_ports_that_go_without_saying() -> None:
    assert origin("https://A.example:443/x") == origin("https://a.example")
    assert origin("http://a.example:80") == origin("http://a.example/")
    assert origin("http://a.example") != origin("https://a.example")


def test_metadata_is_beside_the_path() -> None:
    assert metadata_path("/mcp") == "/.well-known/oauth-protected-resource/mcp"
    assert metadata_path("/") == metadata_path("") == "/.well-known/oauth-protected-resource"
