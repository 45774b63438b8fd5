"""Commands as a user runs them: child processes with real signals, awaited by what they print."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from tempfile import TemporaryDirectory

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

BIN = Path(sys.executable).parent
DEADLINE = 30.0
"""Seconds that anything awaited here may take. Only a test that fails ever gets there."""

STOP_DEADLINE = 5.0
"""Seconds in which a command that is no longer needed ends, before it is killed."""


class Command:
    """A running command, and all it has printed."""

    def __init__(self, process: Process) -> None:
        self.output = ""
        self._process = process
        self._more = anyio.Event()
        self._ended = False

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def says(self, pattern: str) -> re.Match[str]:
        """Return the first place in the output that matches, as soon as it is there."""
        with anyio.fail_after(DEADLINE):
            while not (found := re.search(pattern, self.output)):
                assert not self._ended, f"it ended without saying {pattern!r}:\n{self.output}"
                await self._more.wait()
        return found

    async def ends(self) -> int:
        """Return the exit code; that of a signal is negative."""
        with anyio.fail_after(DEADLINE):
            while not self._ended:
                await self._more.wait()
            return await self._process.wait()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send it a signal; to its whole process group, as a terminal's Ctrl-C does, if wanted."""
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    async def read(self) -> None:
        """Gather the output until its end."""
        assert self._process.stdout is not None
        async for text in TextReceiveStream(self._process.stdout, errors="replace"):
            self.output += text
            self._tell()
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._more.set()
        self._more = anyio.Event()


@asynccontextmanager
async def started(
    *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> AsyncIterator[Command]:
    """Run a command of this environment's, without any setting of the one who tests; end it in any case.

    Without `cwd` it runs in a folder of its own, since the default store is a file where it runs.
    """
    if cwd is None:
        with TemporaryDirectory() as own_folder:
            async with started(*argv, env=env, cwd=Path(own_folder)) as command:
                yield command
        return
    own = {name: value for name, value in os.environ.items() if not name.startswith("SHADOWCAT_")}
    process = await anyio.open_process(
        [str(BIN / argv[0]), *argv[1:]],
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        env={**own, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    command = Command(process)
    async with process, anyio.create_task_group() as tasks:
        tasks.start_soon(command.read)
        try:
            yield command
        finally:
            if process.returncode is None:
                process.terminate()  # and not killed, so that what it covered is counted
                with anyio.move_on_after(STOP_DEADLINE, shield=True):
                    await process.wait()
            if process.returncode is None:
                process.kill()


async def result_of(*argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command to its end; return its exit code and what it printed."""
    async with started(*argv, env=env) as command:
        return await command.ends(), command.output
