"""What is in the wheel and in the source distribution."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from shadowcat import __version__

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    (path,) = built.glob("*.whl")
    assert path.name == f"shadowcat_mcp-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_has_both_packages_whole_and_nothing_else(wheel: dict[str, bytes]) -> None:
    info = f"shadowcat_mcp-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in wheel} == {"shadowcat", "shadowcat_stores", info}
    for root in ("app", "stores"):
        for path in (ROOT / root).rglob("*"):
            if path.suffix == ".py" or path.name == "py.typed":
                assert wheel[str(path.relative_to(ROOT / root))] == path.read_bytes()


def test_the_wheel_is_typed_and_licensed(wheel: dict[str, bytes]) -> None:
    info = f"shadowcat_mcp-{__version__}.dist-info"
    assert {"shadowcat/py.typed", "shadowcat_stores/py.typed", f"{info}/licenses/LICENSE"} <= set(wheel)
    metadata = wheel[f"{info}/METADATA"].decode()
    assert "License-Expression: MIT\n" in metadata
    assert "# Shadowcat\n" in metadata  # the README


def test_the_wheel_brings_the_command_and_the_store(wheel: dict[str, bytes]) -> None:
    entry_points = wheel[f"shadowcat_mcp-{__version__}.dist-info/entry_points.txt"].decode()
    assert "shadowcat = shadowcat.cli:main" in entry_points
    assert "memory = shadowcat_stores.memory:MemoryStore" in entry_points


def test_the_source_distribution_can_be_built_and_tested(sdist: set[str]) -> None:
    packaging = {"Makefile", "constraints.txt", ".ci/pins.py", "Dockerfile", ".dockerignore", "compose.yaml"}
    documents = {"README.md", "CHANGELOG.md", "LICENSE", "docs/mounting.md"}
    sources = {
        "pyproject.toml",
        "app/shadowcat/py.typed",
        "stores/shadowcat_stores/py.typed",
        "tests/conftest.py",
    }
    assert packaging | documents | sources <= sdist
    assert not [name for name in sdist if "node_modules" in name or name.endswith((".pyc", ".db"))]
