"""What can be set, with units, defaults and dangers; and how files and environment variables spell it."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec

from shadowcat_stores import Window

logger = logging.getLogger("shadowcat")

PREFIX = "SHADOWCAT_"
DEFAULT_UPSTREAM = "default"
"""The name of an upstream that was given without one."""

Tape = Literal["off", "window", "full"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the proxy behaves. Immutable; every value is checked when the object is made.

    Raises:
        ValueError: a value is out of its range; the message names the setting.
    """

    tape: Tape = "window"
    """What is recorded of a session. `off`: nothing. `window`: the newest frames, enough to resume and to
    inspect. `full`: everything until the session is deleted or expires, within the store's own limits."""
    tape_frames: int = 1000
    """Frames per session that `window` keeps."""
    tape_bytes: int = 4 * 1024 * 1024
    """Bytes of raw messages per session that `window` keeps."""

    session_ids: Literal["own", "upstream"] = "own"
    """Which session id the client sees: the proxy's own, or the upstream's as it is. With `upstream`, a
    server that gives no id has no session here either."""
    session_ttl: float = 86_400.0
    """Seconds a session lives after its last request."""
    restore_sessions: bool = True
    """Whether a session that the upstream has forgotten, as after a restart, is begun there anew with its
    handshake, log level and resource subscriptions, and the refused request sent once more. What else the
    server kept in it is lost. It must be the same server in the same version. Off: its 404 passes."""

    max_body_bytes: int = 4 * 1024 * 1024
    """Bytes of a request body. A larger one is refused with 413."""
    max_message_bytes: int = 4 * 1024 * 1024
    """Bytes of a server's message that the proxy reads along for the tape. A larger one passes unread."""

    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may call, such as `https://app.example.com`; `*` allows any. The proxy's own
    origin is always allowed, and on a loopback address so is every loopback origin."""
    allowed_hosts: tuple[str, ...] = ()
    """`Host` values (without port) that are ours; `*` allows any. Empty: any, but on a loopback address only
    loopback names, so that a web page cannot reach a local server by rebinding its DNS name."""
    credential_headers: tuple[str, ...] = ("authorization", "x-api-key")
    """Request headers that say who the client is. A session belongs to who opened it."""

    public_url: str = ""
    """Where clients reach the proxy: the URL that `/mcp` is appended to, such as `https://mcp.example.com`.
    Empty: as each request says it, by its `Host`, its scheme and the path the proxy is mounted at. Set it
    where what ends TLS before the proxy does not say so."""
    auth_resource: Literal["proxy", "upstream"] = "proxy"
    """Whom a server's authorization documents name as the resource that tokens are for. `proxy`: where they
    name the server by the address it has for the proxy, they name the address that the client dialled, as
    clients demand. `upstream`: they pass as they are."""
    auth_endpoints: bool = False
    """Whether the endpoints of a server that is its own authorization server, as in revision 2025-03-26, are
    found here as well: `/.well-known/oauth-authorization-server`, `/.well-known/openid-configuration`,
    `/authorize`, `/token` and `/register` of the server that `/mcp` is. Nothing else at its origin is."""
    auth_paths: tuple[str, ...] = ()
    """More paths at that server's origin that are found here, such as `/oauth/token`, or a login page's."""

    transport: Literal["http1", "httpx2"] = "http1"
    """How upstreams are reached. `http1`: HTTP/1.1, right on the event loop. `httpx2`: the HTTP client of
    that name, at several times the CPU; it bears with some servers that `http1` refuses, and counts
    `max_connections` over all upstreams together. For HTTP/2 or an HTTP proxy, hand `create_app` a transport
    of your own."""
    connect_timeout: float = 5.0
    """Seconds to connect to the upstream, and to wait for a free connection."""
    response_timeout: float | None = None
    """Seconds from sending a request to the upstream's response headers. `None`: no limit, since many servers
    send no headers before a tool's first message. A request that runs into it may have been processed."""
    max_connections: int = 1000
    """Connections to one upstream at a time. Each open stream holds one."""
    keepalive: float = 2.0
    """Seconds an idle upstream connection is kept. Servers close theirs after 5 s as a rule, and a request
    sent into a closing connection is lost: stay well below."""

    store_timeout: float = 2.0
    """Seconds a request waits for the session store before it is answered with 503."""
    session_cache: float = 1.0
    """Seconds a session read from a shared store is believed: so long a change made by another replica may
    go unseen. 0 asks the store for every request."""

    record_window: float = 0.05
    """Seconds within which recorded frames are durable in the store. 0: before they are forwarded, which
    costs each message the store's latency."""
    record_queue_bytes: int = 16 * 1024 * 1024
    """Bytes of frames that may wait for the store. Beyond it frames are dropped from the tape, counted and
    logged; the traffic goes on."""
    adopt_seconds: float = 60.0
    """Seconds that a response goes on being read for a client that has left it, so that the client finds it
    on the tape when it comes back. 0 ends it at the server as well."""
    adopt_events: int = 500
    """Events that are read of it meanwhile; then the server has to wait."""
    adopt_bytes: int = 1024 * 1024
    """Bytes that are read of it meanwhile; then the server has to wait."""
    replica_lease: float = 0.8
    """Seconds of silence after which other replicas take this one for dead, and its streams over. The clocks
    of their machines must agree to a part of that."""
    recover_seconds: float = 30.0
    """Seconds that a stream which the server has cut is tried to be resumed there."""
    reconnect_after: int = 1000
    """Milliseconds after which clients whose stream has ended are told to come back."""
    stream_keepalive: float = 15.0
    """Seconds of silence after which a stream gets a comment, so that nothing between takes it for dead. 0:
    none."""
    shutdown_grace: float = 5.0
    """Seconds that open responses get to finish when the server stops."""

    def __post_init__(self) -> None:
        self._check_types()
        positive = (
            "tape_frames", "tape_bytes", "session_ttl", "max_body_bytes", "max_message_bytes",
            "connect_timeout", "max_connections", "keepalive", "record_queue_bytes", "store_timeout",
            "adopt_events", "adopt_bytes", "replica_lease",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")
        not_negative = (
            "record_window", "shutdown_grace", "session_cache", "adopt_seconds", "recover_seconds",
            "reconnect_after", "stream_keepalive",
        )  # fmt: skip
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
        if self.response_timeout is not None and self.response_timeout <= 0:
            raise ValueError("response_timeout must be more than 0; leave it out for no limit")
        self._check_addresses()

    def _check_addresses(self) -> None:
        for origin in self.allowed_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@]+", origin):
                raise ValueError(f"allowed_origins: {origin!r} is no origin such as https://app.example.com")
        if self.public_url and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", self.public_url):
            raise ValueError(f"public_url: {self.public_url!r} is no URL such as https://mcp.example.com")
        for path in self.auth_paths:
            if not re.fullmatch(r"/[^?#{}\s]+", path):
                raise ValueError(f"auth_paths: {path!r} is no path such as /oauth/token")
        for host in self.allowed_hosts:
            if host != "*" and not re.fullmatch(r"[^/:@\s]+|[0-9a-f:.]+", host):
                raise ValueError(f"allowed_hosts: {host!r} is no host such as mcp.example.com, without port")

    def _check_types(self) -> None:
        # A struct made in Python checks no types, and a list given as one text would let anybody in.
        for field in msgspec.structs.fields(type(self)):
            try:
                msgspec.convert(getattr(self, field.name), field.type)
            except msgspec.ValidationError as exc:
                raise ValueError(f"{field.name}: {exc}") from None

    @property
    def credential_names(self) -> frozenset[bytes]:
        """The `credential_headers`, as they come."""
        return frozenset(name.lower().encode() for name in self.credential_headers)

    @property
    def touch_after(self) -> float:
        """Seconds that a session may go on before the store is told that it lives on."""
        return min(60.0, self.session_ttl / 10)

    @property
    def window(self) -> Window | None:
        """How much of each tape the store keeps; `None` leaves it to the store's limits."""
        return Window(self.tape_frames, self.tape_bytes) if self.tape == "window" else None


class Deployment(Settings, frozen=True, kw_only=True):
    """The settings of a server that is started by a command or from the environment: also what it stands
    in front of, and where it keeps its sessions."""

    upstream: dict[str, str]
    """Upstream URLs by name."""
    store: str = "sqlite:///shadowcat.db"
    """The URL of the session store: `sqlite:///FILE`, `redis://…`, `valkey://…`, `memory://`, or one of an
    installed package's."""
    workers: int = 1
    """Processes of `shadowcat serve`, which share the store; `memory://` cannot be shared. uvicorn and
    gunicorn have an option of that name instead."""
    root_path: str = ""
    """The path that something in front of `shadowcat serve` takes off before it forwards, such as `/tools`:
    addresses that clients get begin with it. uvicorn has an option of that name instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, not {self.workers!r}")
        if not re.fullmatch(r"(/[^/?#\s]+)*", self.root_path):
            raise ValueError(f"root_path: {self.root_path!r} is no path such as /tools")

    @classmethod
    def load(cls, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Self:
        """Return the deployment described by a TOML file (`SHADOWCAT_CONFIG`), overridden by environment
        variables (`SHADOWCAT_UPSTREAM`, … : the settings' names in capitals), overridden by `overrides`.

        Raises:
            ValueError: something is missing, unknown or out of range; the message names it.
        """
        path = (overrides or {}).get("config") or environ.get(PREFIX + "CONFIG")
        values: dict[str, Any] = _read_toml(Path(path)) if path else {}
        for name in cls.__struct_fields__:
            if PREFIX + name.upper() in environ:
                values[name] = _from_text(name, environ[PREFIX + name.upper()])
        values |= {name: value for name, value in (overrides or {}).items() if name != "config"}
        if isinstance(values.get("upstream"), str):
            values["upstream"] = {DEFAULT_UPSTREAM: values["upstream"]}
        if not values.get("upstream"):
            raise ValueError(
                "no upstream is given: name the MCP server to stand in front of with --upstream URL or "
                "SHADOWCAT_UPSTREAM=URL, such as http://127.0.0.1:3001/mcp"
            )
        _warn_of_unknown(environ, cls.__struct_fields__)
        unknown = sorted(values.keys() - set(cls.__struct_fields__))
        if unknown:
            hint = _NO_SETTINGS.get(unknown[0], f"known are {', '.join(cls.__struct_fields__)}")
            raise ValueError(f"unknown setting {unknown[0]!r}; {hint}")
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as exc:
            raise ValueError(_in_words(str(exc), get_type_hints(cls))) from None


def parse_upstreams(items: tuple[str, ...]) -> dict[str, str]:
    """Return upstream URLs by name from items such as `URL`, `NAME=URL` and `NAME=URL,NAME=URL`.

    Raises:
        ValueError: an item is no such thing, or a name is given twice.
    """
    upstreams: dict[str, str] = {}
    for item in (part for each in items for part in _BETWEEN_UPSTREAMS.split(each)):
        name, equals, url = item.partition("=")
        if not equals or "/" in name:
            name, url = DEFAULT_UPSTREAM, item
        if name in upstreams:
            raise ValueError(
                f"upstream {name!r} is given twice: give each a name of its own, as NAME=URL"
                + (" (one without a name is called 'default')" if name == DEFAULT_UPSTREAM else "")
            )
        upstreams[name.strip()] = check_upstream(name.strip(), url.strip())
    return upstreams


def check_upstream(name: str, url: str) -> str:
    """Return the URL of the upstream.

    Raises:
        ValueError: the name cannot stand in a path, or the URL is none of http or https, or says more than
            would be sent.
    """
    if not name or not all(each.isalnum() or each in "-_." for each in name):
        raise ValueError(f"upstream name {name!r} must be made of letters, digits, '-', '_' and '.'")
    wrong = ValueError(f"upstream {url!r} is no URL such as http://127.0.0.1:3001/mcp")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is none
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise wrong
    if "@" in parts.netloc or parts.fragment:
        # The URL itself stays out of the message: it may hold a password.
        what = "credentials" if "@" in parts.netloc else "a fragment"
        raise ValueError(
            f"the URL of upstream {name!r} has {what}, which would not be sent: leave it out; what clients "
            "say in Authorization passes"
        )
    return url


def _from_text(name: str, text: str) -> Any:
    if name == "upstream":
        given = text.strip(" ,")
        return parse_upstreams((given,) if given else ())
    if name in ("allowed_origins", "allowed_hosts", "credential_headers", "auth_paths"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


_BETWEEN_UPSTREAMS: Final = re.compile(r",\s*(?=(?:[\w.-]+=)?[a-z]+://)")
"""A comma that does not stand in a URL."""
_NO_SETTINGS: Final = {
    "host": "it is an option of the command: --host ADDRESS",
    "port": "it is an option of the command: --port NUMBER",
    "shadowcat": "settings stand at the top of the file, in no table",
}
"""What is taken for a setting, and what to do instead."""


def _warn_of_unknown(environ: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Say which variables look like settings and are none. No error: Kubernetes sets such names too."""
    names = {PREFIX + name.upper() for name in (*known, "config")}
    for name in sorted(environ):
        if (
            name.startswith(PREFIX)
            and name not in names
            and (meant := get_close_matches(name, names, 1, 0.85))
        ):
            logger.warning("the environment variable %s is no setting; do you mean %s?", name, meant[0])
    for name in ("host", "port"):
        if PREFIX + name.upper() in environ:
            logger.warning("%s is no setting: %s", PREFIX + name.upper(), _NO_SETTINGS[name])


def _in_words(message: str, types: Mapping[str, Any]) -> str:
    """Put the setting's name first, and the values it may have where they are a few."""
    what, _, where = message.partition(" - at `$.")
    name = where.rstrip("`")
    choices = get_args(types.get(name))
    if choices and all(isinstance(each, str) for each in choices):
        what += f", must be one of {', '.join(choices)}"
    return f"{name}: {what}" if name else message


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"the configuration file {str(path)!r} does not exist") from None
    except OSError as exc:
        raise ValueError(f"the configuration file {str(path)!r} cannot be read: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"the configuration file {str(path)!r} is no TOML: {exc}") from None
