"""Authorization behind the proxy: what a client is told of addresses holds at the one that it dialled."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from shadowcat import Settings, create_app, lifespan_of
from shadowcat_stores import MemoryStore
from tests.support.http_sse import listening
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream

METADATA = "/.well-known/oauth-protected-resource"
SERVER = "/.well-known/oauth-authorization-server"
JSON = ("Content-Type", "application/json")


class Authorizing:
    """A server that wants a token, and says of itself what it is told to."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.base = upstream.url.removesuffix("/mcp")
        self.documents: dict[str, Any] = {METADATA + "/mcp": self.metadata()}
        self.challenge = f'Bearer realm="x", resource_metadata="{self.base}{METADATA}/mcp", scope="a b"'
        upstream.handshake = self.answer

    def metadata(self, **more: Any) -> dict[str, Any]:
        return {"resource": self.base + "/mcp", "authorization_servers": ["https://as.example"], **more}

    async def answer(self, received: Received, connection: Connection) -> None:
        path = received.target.partition("?")[0]
        if path in self.documents:
            await connection.respond(json.dumps(self.documents[path]).encode(), JSON)
        elif path == "/mcp":
            headers = [("WWW-Authenticate", "Negotiate"), ("WWW-Authenticate", self.challenge)]
            await connection.respond(b"who?", *headers, status="401 Unauthorized")
        else:
            await connection.respond(b"<h1>no</h1>", ("Content-Type", "text/html"), status="404 Not Found")


@pytest.fixture
def server(upstream: ScriptedUpstream) -> Authorizing:
    return Authorizing(upstream)


@asynccontextmanager
async def mounted(
    upstream: str | Mapping[str, str], prefix: str, **settings: Any
) -> AsyncIterator[tuple[str, httpx2.AsyncClient]]:
    """Run the proxy under a prefix of another app."""
    inner = create_app(MemoryStore(), upstream=upstream, settings=Settings(**settings))
    app = Starlette(routes=[Mount(prefix, inner)], lifespan=lambda _: lifespan_of(inner))
    async with serve(app) as base, httpx2.AsyncClient(timeout=10) as client:
        yield base, client


async def test_the_challenge_leads_to_metadata_that_names_what_the_client_dialled(
    proxy: Proxied, server: Authorizing
) -> None:
    refused = await proxy.post(INITIALIZE)
    assert (refused.status_code, refused.content) == (401, b"who?")
    here = proxy.base + METADATA + "/mcp"
    assert refused.headers.get_list("www-authenticate") == [
        "Negotiate",
        f'Bearer realm="x", resource_metadata="{here}", scope="a b"',
    ]
    found = await proxy.client.get(here, headers={"Authorization": "Bearer x", "Accept-Encoding": "gzip"})
    assert found.headers["content-type"] == "application/json"
    assert found.json() == {"resource": proxy.url, "authorization_servers": ["https://as.example"]}
    assert server.upstream.received[-1].header(b"authorization") == b"Bearer x"
    assert [each.target for each in server.upstream.received] == ["/mcp", METADATA + "/mcp"]


async def test_a_403_is_a_challenge_as_well(proxy: Proxied, server: Authorizing) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        scope = f'Bearer error="insufficient_scope", resource_metadata={server.base}/x , scope="b"'
        await connection.respond(b"", ("WWW-Authenticate", scope), status="403 Forbidden")

    server.upstream.handshake = refuse
    refused = await proxy.post(INITIALIZE)
    here = proxy.base + METADATA + "/mcp"
    expected = f'Bearer error="insufficient_scope", resource_metadata="{here}" , scope="b"'
    assert refused.headers["www-authenticate"] == expected


async def test_metadata_at_a_path_of_the_servers_own_is_found_once_it_has_said_so(
    proxy: Proxied, server: Authorizing
) -> None:
    server.documents = {"/odd/place.json": server.metadata()}
    server.challenge = f'Bearer resource_metadata="{server.base}/odd/place.json?v=2"'
    at = proxy.base + METADATA + "/mcp"
    assert (await proxy.client.get(at)).status_code == 404
    refused = await proxy.post(INITIALIZE)
    assert refused.headers.get_list("www-authenticate")[1] == f'Bearer resource_metadata="{at}"'
    assert (await proxy.client.get(at)).json()["resource"] == proxy.url
    assert server.upstream.received[-1].target == "/odd/place.json?v=2"


async def test_the_root_is_asked_for_at_the_root_first(proxy: Proxied, server: Authorizing) -> None:
    at = proxy.base + METADATA
    assert (await proxy.client.get(at)).json()["resource"] == proxy.url
    assert [each.target for each in server.upstream.received] == [METADATA, METADATA + "/mcp"]
    server.documents[METADATA] = {"resource": server.base, "authorization_servers": []}
    assert (await proxy.client.get(at)).json() == {"resource": proxy.url, "authorization_servers": []}
    assert proxy.service.counters.client_requests == 2
    assert proxy.service.counters.upstream_requests == {"forward": 2, "recover": 1}


FOREIGN: dict[str, Any] = {
    "another server's": {"resource": "https://other.example/mcp"},
    "another path's": {"resource": "UPSTREAM/mcp-2"},
    "no resource": {"authorization_servers": ["UPSTREAM"]},
    "no text": {"resource": 7},
    "no URL": {"resource": "http://[/mcp"},
    "a list": [1],
    "nothing": None,
}


@pytest.mark.parametrize("document", FOREIGN.values(), ids=FOREIGN)
async def test_what_a_client_would_refuse_directly_it_can_refuse_here(
    proxy: Proxied, server: Authorizing, document: Any
) -> None:
    document = json.loads(json.dumps(document).replace("UPSTREAM", server.base))
    server.documents[METADATA + "/mcp"] = document
    found = await proxy.client.get(proxy.base + METADATA + "/mcp")
    assert found.content == json.dumps(document).encode()


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer resource_metadata="https://other.example/.well-known/oauth-protected-resource"',
        'Bearer x_resource_metadata="UPSTREAM/a"',
        'Bearer resource_metadata=""',
        "Basic realm=resource_metadata",
    ],
)
async def test_a_challenge_that_leads_elsewhere_passes_as_it_is(
    proxy: Proxied, server: Authorizing, challenge: str
) -> None:
    server.challenge = challenge.replace("UPSTREAM", server.base)
    refused = await proxy.post(INITIALIZE)
    assert refused.headers.get_list("www-authenticate")[1] == server.challenge


async def test_a_server_that_knows_the_proxys_address_as_its_own_is_left_alone(
    proxy: Proxied, server: Authorizing
) -> None:
    public = {"resource": proxy.url, "authorization_servers": [server.base], "signed_metadata": "e30"}
    server.documents = {METADATA + "/mcp": public}
    server.challenge = f'Bearer resource_metadata="{proxy.base}{METADATA}/mcp"'
    refused = await proxy.post(INITIALIZE)
    assert refused.headers.get_list("www-authenticate")[1] == server.challenge
    assert (await proxy.client.get(proxy.base + METADATA + "/mcp")).content == json.dumps(public).encode()


async def test_named_servers_have_their_own(upstream: ScriptedUpstream, server: Authorizing) -> None:
    async with proxied({"one": upstream.url, "two": upstream.url}) as proxy:
        for name in ("one", "two"):
            proxy.path = f"/{name}/mcp"
            at = f"{proxy.base}{METADATA}/{name}/mcp"
            refused = await proxy.post(INITIALIZE)
            assert f'resource_metadata="{at}"' in refused.headers.get_list("www-authenticate")[1]
            assert (await proxy.client.get(at)).json()["resource"] == proxy.url
        assert (await proxy.client.get(proxy.base + METADATA)).status_code == 404


@pytest.mark.parametrize("name", ["", "/one"])
async def test_a_server_of_http_sse_has_its_metadata_beside_where_its_stream_is(
    upstream: ScriptedUpstream, server: Authorizing, name: str
) -> None:
    """What a client dials, and has a token for, is not the address for messages, which it is given."""
    refuse = server.answer

    async def answer(received: Received, connection: Connection) -> None:
        if received.header(b"authorization") == b"Bearer x" and received.method == "GET":
            await connection.start_stream()
            await connection.chunk(b"event: endpoint\ndata: /mcp?n=1\n\n")
            await connection.peer_left()
        else:
            await refuse(received, connection)

    upstream.handshake = answer
    async with proxied({"default": upstream.url, "one": upstream.url}) as proxy:
        proxy.path = f"{name}/sse"
        at = f"{proxy.base}{METADATA}{name}/sse"
        async with proxy.stream("GET") as challenged:
            assert f'resource_metadata="{at}"' in challenged.headers.get_list("www-authenticate")[1]
        assert (await proxy.client.get(at)).json()["resource"] == proxy.url
        with anyio.fail_after(5):
            async with listening(proxy, Authorization="Bearer x") as client:
                assert client.endpoint.startswith(f"{name}/messages?")
                refused = await client.post(INITIALIZE)
        assert refused.status_code == 401
        assert f'resource_metadata="{at}"' in refused.headers.get_list("www-authenticate")[1]


async def test_a_named_server_that_knows_the_proxys_address_has_its_metadata_there(
    upstream: ScriptedUpstream, server: Authorizing
) -> None:
    """No challenge has said so before: another replica may have sent that."""
    async with proxied({"one": upstream.url, "two": upstream.url}) as proxy:
        at = METADATA + "/one/mcp"
        server.documents = {at: {"resource": proxy.base + "/one/mcp"}}
        assert (await proxy.client.get(proxy.base + at)).json() == server.documents[at]


async def test_under_a_prefix_the_metadata_is_below_it(
    upstream: ScriptedUpstream, server: Authorizing
) -> None:
    async with mounted(upstream.url, "/tools") as (base, client):
        headers = {"Accept": "application/json, text/event-stream"}
        refused = await client.post(base + "/tools/mcp", json=INITIALIZE, headers=headers)
        at = base + "/tools" + METADATA + "/mcp"
        assert f'resource_metadata="{at}"' in refused.headers.get_list("www-authenticate")[1]
        assert (await client.get(at)).json()["resource"] == base + "/tools/mcp"


async def test_the_public_url_counts_where_it_is_set(upstream: ScriptedUpstream, server: Authorizing) -> None:
    async with proxied(upstream.url, public_url="https://mcp.example.com/a/") as proxy:
        refused = await proxy.post(INITIALIZE)
        at = f"https://mcp.example.com/a{METADATA}/mcp"
        assert f'resource_metadata="{at}"' in refused.headers.get_list("www-authenticate")[1]
        found = await proxy.client.get(proxy.base + METADATA + "/mcp")
        assert found.json()["resource"] == "https://mcp.example.com/a/mcp"


async def test_a_host_that_is_none_gets_into_no_document(
    upstream: ScriptedUpstream, server: Authorizing
) -> None:
    async with proxied(upstream.url, allowed_hosts=("*",)) as proxy:
        found = await proxy.client.get(proxy.base + METADATA + "/mcp", headers={"Host": 'a"b'})
        assert found.json()["resource"] == "http://127.0.0.1/mcp"


@pytest.mark.parametrize("proxy", [{"auth_resource": "upstream"}], indirect=True)
async def test_everything_passes_as_it_is_where_the_setting_says_so(
    proxy: Proxied, server: Authorizing
) -> None:
    refused = await proxy.post(INITIALIZE)
    assert refused.headers.get_list("www-authenticate")[1] == server.challenge
    found = await proxy.client.get(proxy.base + METADATA + "/mcp")
    assert found.content == json.dumps(server.documents[METADATA + "/mcp"]).encode()


async def test_what_is_signed_goes_with_what_it_signs(proxy: Proxied, server: Authorizing) -> None:
    server.documents[METADATA + "/mcp"] = server.metadata(signed_metadata="e30.e30.", x={"n": True})
    found = await proxy.client.get(proxy.base + METADATA + "/mcp")
    assert found.json() == {
        "resource": proxy.url,
        "authorization_servers": ["https://as.example"],
        "x": {"n": True},
    }


async def test_a_document_that_is_too_long_or_encoded_passes_as_it_is(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    body = b'{"resource": "%b", "x": "%b"}' % (upstream.url.encode(), b"x" * 300_000)
    headers = [JSON]

    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(body, *headers)

    upstream.handshake = script
    assert (await proxy.client.get(proxy.base + METADATA + "/mcp")).content == body
    headers.append(("Content-Encoding", "odd"))
    body = b"short"
    found = await proxy.client.get(proxy.base + METADATA + "/mcp")
    assert (found.content, found.headers["content-encoding"]) == (b"short", "odd")


async def test_a_server_that_is_down_is_said_to_be(upstream: ScriptedUpstream, proxy: Proxied) -> None:
    upstream.server.close()
    found = await proxy.client.get(proxy.base + METADATA + "/mcp")
    assert found.status_code == 502
    assert found.headers["content-type"] == "application/problem+json"
    assert "Nothing was sent" in found.json()["detail"]


async def test_foreign_pages_and_hosts_are_refused_there_too(proxy: Proxied, server: Authorizing) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert (await proxy.client.get(proxy.base + METADATA, headers=headers)).status_code == 403
    assert server.upstream.received == []


async def test_a_proxy_whose_lifespan_does_not_run_says_so(upstream: ScriptedUpstream) -> None:
    app = Starlette(routes=[Mount("/tools", create_app(MemoryStore(), upstream=upstream.url))])
    async with serve(app) as base, httpx2.AsyncClient() as client:
        found = await client.get(base + "/tools" + METADATA)
    assert found.status_code == 500
    assert "lifespan_of" in found.json()["detail"]


@pytest.mark.parametrize("sent", [b"", b"7"])
async def test_a_client_that_leaves_ends_its_request(
    proxy: Proxied, upstream: ScriptedUpstream, sent: bytes
) -> None:
    """Before the answer, and within its document."""
    begun, left = anyio.Event(), anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if sent:
            await connection.start_stream(media="application/json")
            await connection.chunk(sent)
        begun.set()
        await connection.peer_left()
        left.set()

    upstream.handshake = script
    with anyio.fail_after(5):
        async with raw_client(proxy.base + METADATA) as (_, writer):
            writer.write(raw_request(proxy.base + METADATA, "GET"))
            await begun.wait()
        await left.wait()


@pytest.mark.parametrize("begins", [False, True])
async def test_a_server_that_stops_does_not_wait_for_it(upstream: ScriptedUpstream, begins: bool) -> None:
    begun = anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if begins:
            await connection.start_stream(media="text/html")
            await connection.chunk(b"x")
        begun.set()
        await connection.peer_left()

    upstream.handshake = script
    async with proxied(upstream.url, shutdown_grace=0, auth_endpoints=True) as proxy:
        with anyio.fail_after(5):
            async with raw_client(proxy.base + "/authorize") as (reader, writer):
                writer.write(raw_request(proxy.base + "/authorize", "GET"))
                await begun.wait()
                if begins:
                    await reader.readuntil(b"\r\n\r\n")
                proxy.service.drain()
                if begins:
                    assert not (await reader.read()).endswith(b"0\r\n\r\n")
                else:
                    assert (await reader.readline()).startswith(b"HTTP/1.1 502")


# -- 2025-03-26: a server that is its own authorization server -----------------------------------------------


async def test_its_endpoints_are_found_only_where_the_setting_says_so(
    upstream: ScriptedUpstream, server: Authorizing
) -> None:
    async with proxied(upstream.url) as proxy:
        for path in (SERVER, "/.well-known/openid-configuration", "/authorize"):
            found = await proxy.client.get(proxy.base + path)
            assert found.status_code == 404
            assert "auth_endpoints" in found.json()["detail"]
    assert upstream.received == []


async def test_endpoints_at_other_paths_are_found_where_a_setting_names_them(
    upstream: ScriptedUpstream, server: Authorizing
) -> None:
    server.documents = {
        SERVER: {"issuer": server.base, "token_endpoint": server.base + "/oauth/token"},
        "/oauth/token": {"access_token": "x"},
        "/oauth/revoke": {},
    }
    async with proxied(upstream.url, auth_endpoints=True, auth_paths=("/oauth/token",)) as proxy:
        told = (await proxy.client.get(proxy.base + SERVER)).json()
        assert told == {"issuer": proxy.base, "token_endpoint": proxy.base + "/oauth/token"}
        got = await proxy.client.post(proxy.base + "/oauth/token", content=b"grant_type=x")
        assert (got.json(), upstream.received[-1].body) == ({"access_token": "x"}, b"grant_type=x")
        assert (await proxy.client.post(proxy.base + "/oauth/revoke")).status_code == 404


async def test_its_endpoints_are_forwarded_with_what_they_are_sent(upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(
            received.body + b"!", JSON, ("Set-Cookie", "a=1"), ("Cache-Control", "no-store")
        )

    upstream.handshake = script
    async with proxied(upstream.url, auth_endpoints=True) as proxy:
        form = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Authorization": "Basic YTpi",
            "Cookie": "b=2",
        }
        for path in ("/token", "/register", "/authorize"):
            found = await proxy.client.post(proxy.base + path + "?a=%20b", headers=form, content=b"grant=x")
            assert (found.status_code, found.content) == (200, b"grant=x!")
            assert (found.headers["set-cookie"], found.headers["cache-control"]) == ("a=1", "no-store")
            received = upstream.received[-1]
            assert (received.method, received.target) == ("POST", path + "?a=%20b")
            assert {name: received.header(name.lower().encode()) for name in form} == {
                name: value.encode() for name, value in form.items()
            }
        for method, path in (
            ("GET", "/token"),
            ("PUT", "/register"),
            ("GET", "/authorize/x"),
            ("GET", "/login"),
        ):
            assert (await proxy.client.request(method, proxy.base + path)).status_code in (404, 405)
        huge = await proxy.client.post(proxy.base + "/register", content=b"x" * (5 * 1024 * 1024))
        assert huge.status_code == 413
    assert len(upstream.received) == 3


async def test_its_metadata_names_the_proxy(upstream: ScriptedUpstream, server: Authorizing) -> None:
    elsewhere = {"jwks_uri": server.base + "/keys", "token_endpoint": server.base + "/oauth/token", "n": 1}
    document = {
        "issuer": server.base + "/",
        "authorization_endpoint": server.base + "/authorize",
        "registration_endpoint": "https://other.example/register",
    }
    server.documents = {
        SERVER: document | elsewhere,
        METADATA + "/mcp": server.metadata(authorization_servers=[server.base, "https://as.example/"]),
    }
    async with proxied(upstream.url, auth_endpoints=True) as proxy:
        assert (await proxy.client.get(proxy.base + SERVER)).json() == elsewhere | {
            "issuer": proxy.base + "/",
            "authorization_endpoint": proxy.base + "/authorize",
            "registration_endpoint": "https://other.example/register",
        }
        found = await proxy.client.get(proxy.base + METADATA + "/mcp")
        assert found.json()["authorization_servers"] == [proxy.base, "https://as.example/"]


@pytest.mark.parametrize("document", [{"issuer": "https://as.example"}, {"issuer": "UPSTREAM/tenant"}, {}])
async def test_metadata_of_another_issuer_passes_as_it_is(
    upstream: ScriptedUpstream, server: Authorizing, document: dict[str, str]
) -> None:
    document = {name: value.replace("UPSTREAM", server.base) for name, value in document.items()}
    server.documents[SERVER] = document | {"token_endpoint": server.base + "/token"}
    async with proxied(upstream.url, auth_endpoints=True) as proxy:
        found = await proxy.client.get(proxy.base + SERVER)
        assert found.content == json.dumps(server.documents[SERVER]).encode()


async def test_servers_that_are_no_list_stay_out(upstream: ScriptedUpstream, server: Authorizing) -> None:
    server.documents[METADATA + "/mcp"] = server.metadata(authorization_servers="x")
    async with proxied(upstream.url, auth_endpoints=True) as proxy:
        found = await proxy.client.get(proxy.base + METADATA + "/mcp")
        assert found.json() == {"resource": proxy.url, "authorization_servers": "x"}


async def test_the_issuer_in_a_redirect_is_the_one_the_client_knows(upstream: ScriptedUpstream) -> None:
    back = "http://127.0.0.1:1/cb?code=a%2Bb&state=&iss="
    location = ""

    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(b"", ("Location", location), status="302 Found")

    upstream.handshake = script
    own = upstream.url.removesuffix("/mcp")
    async with proxied(upstream.url, auth_endpoints=True) as proxy:
        for said, known in ((own, proxy.base), ("https://as.example", "https://as.example")):
            location = back + said
            found = await proxy.client.get(proxy.base + "/authorize?client_id=x")
            arrived = httpx2.URL(found.headers["location"])
            assert dict(arrived.params) == {"code": "a+b", "state": "", "iss": known}
            assert (found.headers["location"] == location) is (said == known)


async def test_the_authorization_header_of_a_session_is_forwarded_untouched(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin(Authorization="bEaReR  odd\tvalue==")
    assert upstream.received[-1].header(b"authorization") == b"bEaReR  odd\tvalue=="
    await proxy.post(request("ping"), Authorization="bEaReR  odd\tvalue==")
    assert upstream.received[-1].header(b"authorization") == b"bEaReR  odd\tvalue=="
