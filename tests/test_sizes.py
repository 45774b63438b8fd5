"""Each module can be read in one sitting."""

from __future__ import annotations

import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 400
MEDIAN = 150


def lines() -> dict[str, int]:
    modules = [path for root in ("app", "stores") for path in (ROOT / root).rglob("*.py")]
    return {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in modules}


def test_no_module_is_too_long() -> None:
    assert {name: count for name, count in lines().items() if count > MOST} == {}


def test_most_modules_are_short() -> None:
    assert statistics.median(lines().values()) <= MEDIAN
