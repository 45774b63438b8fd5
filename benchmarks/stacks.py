"""What stands between the load and the stub: nothing, nginx, naive proxies, Shadowcat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from . import environments, nginx, valkey
from .processes import free_port, module

SQLITE = "sqlite:///{directory}/sessions.db"

Command = Callable[[str, int, Path], list[str]]
"""From the upstream's URL, the port to listen on and a directory of its own to the command line."""


@dataclass(frozen=True)
class Stack:
    """One row of the table."""

    name: str
    label: str
    command: Command | None = None
    """`None`: the load talks to the stub itself."""
    metrics: bool = False
    """Whether it counts for itself and says so at `/metrics`."""
    missing: str = ""
    """Why it cannot run here; it is then named below the table."""
    environment: str = ""
    """What must be installed for it in a place of its own."""
    redis_port: int = 0
    """Where it wants a Valkey server, which the run starts."""

    def prepared(self) -> Self:
        """With its environment installed, or as missing."""
        if self.missing or not self.environment:
            return self
        return replace(self, missing=environments.install(self.environment))


def naive(library: str, environment: str = "") -> Stack:
    python = environments.python(environment) if environment else sys.executable

    def command(upstream: str, port: int, directory: Path) -> list[str]:
        _, *rest = module("naive", "--upstream", upstream, "--port", port, "--library", library)
        return [python, *rest]

    return Stack(f"naive-{library}", f"naive Starlette + {library}", command, environment=environment)


def shadowcat(
    tape: str, store: str = "memory://", name: str = "", label: str = "", **settings: object
) -> Stack:
    """`{directory}` in the store's URL is a directory that goes when the run ends."""

    def command(upstream: str, port: int, directory: Path) -> list[str]:
        binary = str(Path(sys.executable).with_name("shadowcat"))
        where = ["--upstream", upstream, "--host", "127.0.0.1", "--port", str(port)]
        serve = [binary, "serve", *where, "--store", store.format(directory=directory), "--tape", tape]
        return with_settings(serve, **settings)

    kind = store.partition(":")[0]
    missing = "" if find_spec("shadowcat.cli") else "the command `shadowcat` is not there"
    label = f"**Shadowcat**, tape {tape}, {kind} store{label}"
    return Stack(name or f"shadowcat-{tape}", label, command, True, missing)


def with_settings(command: list[str], **settings: object) -> list[str]:
    """The command, with these settings of Shadowcat's in its environment."""
    return ["env", *(f"SHADOWCAT_{key.upper()}={value}" for key, value in settings.items()), *command]


def with_stores(redis: str) -> list[Stack]:
    """Shadowcat with each store and tape; `redis` is the URL of a server."""
    urls = {"memory": "memory://", "sqlite": SQLITE, "redis": redis}
    return [
        shadowcat(tape, url if kind != "redis" else f"{url}?prefix={tape}:", f"shadowcat-{tape}-{kind}")
        for kind, url in urls.items()
        if url
        for tape in ("off", "full", "window")  # what is compared comes one after the other
    ]


def for_streams(store: str) -> list[Stack]:
    """`store` is the URL of Shadowcat's."""
    others = [each for each in all_stacks() if not each.metrics and not each.environment]
    # More streams than the proxy allows by default, and held for as long as they are measured.
    ours = (
        shadowcat(tape, store, max_connections=20_000, adopt_seconds=3600)
        for tape in ("off", "window", "full")
    )
    return [*others, *ours]


def all_stacks() -> list[Stack]:
    return [
        Stack("direct", "direct, no proxy"),
        Stack("nginx", "nginx", nginx.command, missing="" if nginx.find() else nginx.ADVICE),
        naive("httpx", "naive-httpx"),
        naive("httpx2"),
        shadowcat("window", name="shadowcat-window-httpx2", label=", stock transport", transport="httpx2"),
        *(shadowcat(tape) for tape in ("off", "window", "full")),
        shadowcat("window", SQLITE, "shadowcat-window-sqlite"),
        _with_redis("window"),
    ]


def _with_redis(tape: str) -> Stack:
    port = free_port()
    stack = shadowcat(tape, f"redis://127.0.0.1:{port}", f"shadowcat-{tape}-redis")
    return replace(stack, redis_port=port, missing=stack.missing or ("" if valkey.find() else valkey.ADVICE))
