"""What stands between the load and the stub: nothing, nginx, the naive proxy, Shadowcat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import nginx
from .naive import LIBRARIES
from .processes import module

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


def naive(library: str) -> Stack:
    def command(upstream: str, port: int, directory: Path) -> list[str]:
        return module("naive", "--upstream", upstream, "--port", port, "--library", library)

    return Stack(f"naive-{library}", f"naive Starlette + {library}", command)


def shadowcat(tape: str, store: str = "memory://", name: str = "", **settings: object) -> Stack:
    """`{directory}` in the store's URL is a directory that goes when the run ends."""

    def command(upstream: str, port: int, directory: Path) -> list[str]:
        binary = str(Path(sys.executable).with_name("shadowcat"))
        where = ["--upstream", upstream, "--host", "127.0.0.1", "--port", str(port)]
        serve = [binary, "serve", *where, "--store", store.format(directory=directory), "--tape", tape]
        return with_settings(serve, **settings)

    kind = store.partition(":")[0]
    missing = "" if find_spec("shadowcat.cli") else "the command `shadowcat` is not there"
    return Stack(
        name or f"shadowcat-{tape}", f"**Shadowcat**, tape {tape}, {kind} store", command, True, missing
    )


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
    others = [each for each in all_stacks() if not each.metrics]
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
        *(naive(library) for library in LIBRARIES if find_spec(library)),
        *(shadowcat(tape) for tape in ("off", "window", "full")),
    ]
