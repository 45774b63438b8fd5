"""Puts the proxy between a client and the server that the conformance suite plays to it.

    python -m tests.conformance.between COMMAND... URL

Runs the command with the proxy's URL for the server's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import anyio

from shadowcat import create_app
from shadowcat_stores import MemoryStore
from tests.support.serving import serve


async def main(argv: Sequence[str]) -> int:
    """Return the command's exit code."""
    *command, url = argv
    async with serve(create_app(MemoryStore(), upstream=url)) as base:
        here = base.replace("127.0.0.1", "localhost") + "/mcp"
        done = await anyio.run_process([*command, here], check=False, stdout=None, stderr=None)
    return done.returncode


if __name__ == "__main__":
    sys.exit(anyio.run(main, sys.argv[1:]))
