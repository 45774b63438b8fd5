"""The `shadowcat` command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import click
from starlette.applications import Starlette

from shadowcat import __version__
from shadowcat.asgi import app_from_environment
from shadowcat.serving import Server, address, listen
from shadowcat.settings import DEFAULT_UPSTREAM, Deployment, parse_upstreams

_START_FAILED: Final = 3
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
@click.option("--config", type=click.Path(dir_okay=False), metavar="FILE", help="TOML file with settings.")
def serve(upstreams: tuple[str, ...], host: str, port: int, **options: str | None) -> None:
    """Run the proxy in front of one or more MCP servers.

    Settings come from FILE, then from SHADOWCAT_* environment variables, then from these options.
    """
    try:
        overrides: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if upstreams:
            overrides["upstream"] = parse_upstreams(upstreams)
        app = app_from_environment(overrides)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    sockets = listen(host, port)
    lines = _announcement(app, address(host, sockets))
    server = Server(app, on_ready=lambda: click.echo("\n".join(lines), err=True))
    with suppress(KeyboardInterrupt):  # uvicorn hands it on after a clean end
        server.run(sockets)
    if not server.started:
        raise SystemExit(_START_FAILED)


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


def _announcement(app: Starlette, url: str) -> Iterator[str]:
    deployment: Deployment = app.state.shadowcat.settings
    paths = list(_paths(deployment.upstream, url))
    if len(paths) == 1:
        yield f"Shadowcat {__version__} serves {paths[0]}"
    else:
        yield f"Shadowcat {__version__} serves"
        yield from (f"  {path}" for path in paths)
    ends = " (ends with this process)" if deployment.store == "memory://" else ""
    yield f"Store {_shown(deployment.store)}{ends}, tape {deployment.tape}. Ctrl-C stops."


def _paths(upstreams: Mapping[str, str], url: str) -> Iterator[str]:
    for name, upstream in upstreams.items():
        path = "/mcp" if name == DEFAULT_UPSTREAM else f"/{name}/mcp"
        yield f"{url}{path} -> {_shown(upstream)}"


def _shown(url: str) -> str:
    """Return the URL without what may be secret in it: a user's name and password, and the query."""
    return re.sub("//[^/]*@", "//", url.partition("?")[0])
