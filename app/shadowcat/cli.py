"""The `shadowcat` command."""

from __future__ import annotations

import logging.config
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import click
from starlette.applications import Starlette

from shadowcat import __version__
from shadowcat.asgi import app_of, deployment_from_environment
from shadowcat.service import Service
from shadowcat.serving import LOGGING, Server, address, listen
from shadowcat.settings import DEFAULT_UPSTREAM, Deployment, parse_upstreams
from shadowcat.workers import Worker, Workers

_PORTS: Final = {"http": 80, "https": 443}
_PORT: Final = click.IntRange(0, 65535)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """A reverse proxy for the Model Context Protocol."""


@main.command()
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[NAME=]URL",
    help="MCP server to stand in front of. Repeat it, with names, for several.",
)
@click.option(
    "--store",
    metavar="URL",
    help="Session store, such as redis://host/0 or memory://. [default: sqlite:///shadowcat.db]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=_PORT, help="Port to listen on; 0 picks a free one."
)
@click.option(
    "--tape", type=click.Choice(["off", "window", "full"]), help="What is recorded of each session."
)
@click.option("--transport", type=click.Choice(["http1", "httpx2"]), help="How upstreams are reached.")
@click.option("--root-path", metavar="PATH", help="Path that a proxy in front takes off, such as /tools.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that serve. [default: 1]")
@click.option("--config", type=click.Path(dir_okay=False), metavar="FILE", help="TOML file with settings.")
def serve(upstreams: tuple[str, ...], host: str, port: int, **options: str | int | None) -> None:
    """Run the proxy in front of one or more MCP servers.

    Settings come from FILE, then from SHADOWCAT_* environment variables, then from these options.
    """
    try:
        overrides: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if upstreams:
            overrides["upstream"] = parse_upstreams(upstreams)
        deployment = deployment_from_environment(overrides)
        app = app_of(deployment)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if deployment.workers > 1:
        _check_workers(app)
    sockets = listen(host, port)
    _check_loop(deployment.upstream, host, sockets)
    lines = "\n".join(_announcement(deployment, address(host, sockets)))

    def announce() -> None:
        click.echo(lines, err=True)

    if deployment.workers == 1:
        raise SystemExit(Server(app, announce, deployment.root_path).work(sockets))
    logging.config.dictConfig(LOGGING)

    def work(link: socket.socket) -> int:
        # An app of its own: stores tell their objects apart by what they choose when they are made.
        return Worker(app_of(deployment), link, deployment.root_path).work(sockets)

    raise SystemExit(Workers(deployment.workers, work, announce).run())


@main.command()
@click.option(
    "--port", default=8080, show_default=True, type=_PORT, help="The proxy's port; 0 picks a free one."
)
@click.option("--once", is_flag=True, help="End after the calls instead of serving on.")
def demo(port: int, once: bool) -> None:
    """Run a sample MCP server with the proxy in front, make one call of each kind through it, and say what
    to try next."""
    from shadowcat.demo import require_sdk

    require_sdk()
    from shadowcat.demo.run import run_demo

    raise SystemExit(run_demo(port, once))


def _check_workers(app: Starlette) -> None:
    """See that several processes can serve the app.

    Raises:
        click.UsageError: they cannot; the message names the remedy.
    """
    if not hasattr(os, "fork"):
        raise click.UsageError("several workers need an operating system that can fork: leave out --workers")
    service: Service = app.state.shadowcat
    if not service.store.shared:
        raise click.UsageError(
            "several workers need a store that they share, and each would have its own of this one: choose "
            "--store sqlite:///shadowcat.db or --store redis://HOST/0, or leave out --workers"
        )


def _check_loop(upstreams: Mapping[str, str], host: str, listeners: list[socket.socket]) -> None:
    """See that the proxy is not its own upstream: a request would go round until no connection is left.

    Raises:
        click.UsageError: it is.
    """
    port = listeners[0].getsockname()[1]
    own = {host, "localhost", *(listener.getsockname()[0] for listener in listeners)}
    if own & {"0.0.0.0", "::"}:  # noqa: S104 - to compare with
        own |= {"127.0.0.1", "::1"}
    for url in upstreams.values():
        parts = urlsplit(url)
        if parts.hostname in own and (parts.port or _PORTS[parts.scheme]) == port:
            raise click.UsageError(
                f"the upstream {_shown(url)} is the address that the proxy itself listens on: name the MCP "
                "server's, or choose another port with --port"
            )


def _announcement(deployment: Deployment, url: str) -> Iterator[str]:
    paths = list(_paths(deployment.upstream, url))
    if len(paths) == 1:
        yield f"Shadowcat {__version__} serves {paths[0]}"
    else:
        yield f"Shadowcat {__version__} serves"
        yield from (f"  {path}" for path in paths)
    ends = " (ends with this process)" if deployment.store == "memory://" else ""
    workers = f", {deployment.workers} workers" if deployment.workers > 1 else ""
    yield f"Store {_shown(deployment.store)}{ends}, tape {deployment.tape}{workers}. Ctrl-C stops."


def _paths(upstreams: Mapping[str, str], url: str) -> Iterator[str]:
    for name, upstream in upstreams.items():
        path = "/mcp" if name == DEFAULT_UPSTREAM else f"/{name}/mcp"
        yield f"{url}{path} -> {_shown(upstream)}"


def _shown(url: str) -> str:
    """Return the URL without what may be secret in it: a user's name and password, and the query."""
    return re.sub("//[^/]*@", "//", url.partition("?")[0])
