"""What authorization documents say of addresses, as it is true at the proxy's. Nothing here does I/O.

A client compares the `resource` of a server's metadata with the URL that it dialled, and the `issuer` of an
authorization server's with where it found that (RFC 9728 §3.3, RFC 8414 §3.3). So where a document names the
upstream by the address under which the proxy reaches it, it names the proxy instead. What names anything else
stays as it is: a client that would refuse it directly has to refuse it here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from shadowcat.headers import Headers

PROTECTED_RESOURCE: Final = "/.well-known/oauth-protected-resource"
"""https://www.rfc-editor.org/rfc/rfc9728#section-3"""

AUTHORIZATION_SERVER: Final = {
    "/.well-known/oauth-authorization-server": ("GET", "OPTIONS"),
    "/.well-known/openid-configuration": ("GET", "OPTIONS"),
    "/authorize": ("GET", "POST"),
    "/token": ("POST", "OPTIONS"),
    "/register": ("POST", "OPTIONS"),
}
"""Where clients of revision 2025-03-26 look for the authorization server, at the MCP server's own origin:
https://modelcontextprotocol.io/specification/2025-03-26/basic/authorization#fallbacks-for-servers-without-metadata-discovery"""

_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "registration_endpoint")
_METADATA_URL: Final = re.compile(
    rb'(?<![\w-])resource_metadata\s*=\s*(?:"([^"\\]*)"|([^\s",]+))', re.IGNORECASE
)
_TARGET: Final = re.compile(r"/[!-~]*")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Document = dict[str, msgspec.Raw]


@dataclass(frozen=True)
class Addresses:
    """Where the client reaches an upstream by way of the proxy, and where the proxy reaches it."""

    base: str
    """The proxy's URL, below which its paths are."""
    path: str
    """The path of the upstream's MCP endpoint there."""
    upstream: str
    """The upstream's URL."""
    paths: Collection[str] = ()
    """The paths at its origin that are found at the proxy's as well."""

    @cached_property
    def resource(self) -> str:
        """The URL that the client dials."""
        return self.base + self.path

    @cached_property
    def metadata(self) -> str:
        """Where the proxy has the upstream's metadata: below its prefix, which a path put in as RFC 9728 has
        it is not, where the proxy is mounted under one."""
        return self.base + PROTECTED_RESOURCE + self.path

    def metadata_target(self, headers: Headers) -> str | None:
        """Return where the metadata is at the upstream, if a challenge among these headers says so: a path,
        with its query. A URL of the proxy's is one of an upstream that knows itself by that address."""
        for name, value in headers:
            found = _METADATA_URL.search(value) if name == b"www-authenticate" else None
            if found is not None and self._is_ours(url := _url_in(found)):
                parts = urlsplit(url)
                target = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
                return target if _TARGET.fullmatch(target) else None
        return None

    def challenge(self, headers: Headers) -> Headers:
        """Return the headers of a 401 or 403 with the metadata at the proxy's address."""
        return [
            (name, _METADATA_URL.sub(self._here, value) if name == b"www-authenticate" else value)
            for name, value in headers
        ]

    def _here(self, found: re.Match[bytes]) -> bytes:
        return (
            b'resource_metadata="%b"' % self.metadata.encode() if self._is_ours(_url_in(found)) else found[0]
        )

    def _is_ours(self, url: str) -> bool:
        return origin(url) in (origin(self.upstream), origin(self.base))

    def of_resource(self, body: bytes, *, is_authorization_server: bool) -> bytes:
        """Return the metadata of a protected resource with the proxy's addresses.

        Args:
            body: the document as the upstream has it; one that is none is returned as it is.
            is_authorization_server: whether an upstream that is its own authorization server is one here.
        """
        document = _read(body)
        resource = _text(document.get("resource"))
        if resource is None or not _is_within(self.upstream, resource):
            return body
        document["resource"] = _raw(self.resource)
        # What is signed names the upstream, and would count for more.
        document.pop("signed_metadata", None)
        servers = _texts(document.get("authorization_servers"))
        if is_authorization_server and servers:
            document["authorization_servers"] = _raw([self._moved(each, "/") for each in servers])
        return msgspec.json.encode(document)

    def of_authorization_server(self, body: bytes) -> bytes:
        """Return the metadata of an authorization server with the proxy's addresses, if the upstream is it.

        Args:
            body: the document as the upstream has it; one that is none is returned as it is.
        """
        document = _read(body)
        issuer = _text(document.get("issuer"))
        if issuer is None or self._moved(issuer, "/") == issuer:
            return body
        document["issuer"] = _raw(self._moved(issuer, "/"))
        for name in _ENDPOINTS:
            endpoint = _text(document.get(name))
            if endpoint is not None:
                document[name] = _raw(self._moved(endpoint, *self.paths))
        return msgspec.json.encode(document)

    def of_redirect(self, headers: Headers) -> Headers:
        """Return the headers of a redirect with the issuer as the client knows it: RFC 9207."""
        return [
            (
                name,
                self._with_issuer(value.decode("latin-1")).encode("latin-1")
                if name == b"location"
                else value,
            )
            for name, value in headers
        ]

    def _with_issuer(self, location: str) -> str:
        try:
            parts = urlsplit(location)
        except ValueError:
            return location
        said = parse_qsl(parts.query, keep_blank_values=True)
        moved = [(name, self._moved(value, "/") if name == "iss" else value) for name, value in said]
        return location if moved == said else parts._replace(query=urlencode(moved)).geturl()

    def _moved(self, url: str, *paths: str) -> str:
        """Return the URL at the proxy, where it is the upstream's and has one of these paths."""
        if origin(url) != origin(self.upstream) or (urlsplit(url).path or "/") not in paths:
            return url
        authority = url.partition("://")[2]
        slash = authority.find("/")
        return self.base if slash < 0 else self.base + authority[slash:]


def metadata_path(path: str) -> str:
    """Return where the metadata of a resource at this path is: https://www.rfc-editor.org/rfc/rfc9728#section-3.1"""
    return PROTECTED_RESOURCE + ("" if path == "/" else path)


def _url_in(found: re.Match[bytes]) -> str:
    return (found[1] or found[2] or b"").decode("latin-1")


def origin(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of a URL; `None` where it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, host, port) if host else None


def _is_within(url: str, resource: str) -> bool:
    """Return whether a token for the resource is one for the URL: it is its own, or one above it."""
    above = urlsplit(resource).path.rstrip("/") + "/" if origin(resource) == origin(url) else None
    return above is not None and (urlsplit(url).path.rstrip("/") + "/").startswith(above)


def _read(body: bytes) -> Document:
    try:
        return msgspec.json.decode(body, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _text(raw: msgspec.Raw | None) -> str | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return None


def _texts(raw: msgspec.Raw | None) -> list[str]:
    try:
        return [] if raw is None else msgspec.json.decode(raw, type=list[str])
    except msgspec.DecodeError:
        return []


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
