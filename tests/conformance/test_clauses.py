"""The manifest: each clause is held by tests that exist, or says why not."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MANIFEST: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("clauses.toml").read_text("utf-8"))
CLAUSES: list[Mapping[str, Any]] = MANIFEST["clause"]
NAMED = {test for clause in CLAUSES for test in clause.get("tests", ())}


@cache
def in_file(file: str) -> frozenset[str]:
    """Return the node ids of a file's tests."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(f"{file}::{each.name}" for each in functions if each.name.startswith("test_"))


@pytest.mark.parametrize("clause", CLAUSES, ids=[clause["id"] for clause in CLAUSES])
def test_a_clause_is_held_or_says_why_not(clause: Mapping[str, Any]) -> None:
    assert clause.keys() <= {"id", "spec", "words", "tests", "open", "diverged"}
    assert clause["words"]
    assert re.match(r"https://[\w./-]+(#[\w.-]+)?$", clause["spec"])
    why = [clause[name] for name in ("open", "diverged") if name in clause]
    assert all(why), "a reason is given in words"
    assert len(why) <= 1
    assert clause.get("tests") or "open" in clause, "no test holds it"
    assert not ("tests" in clause and "open" in clause), "it is either held or open"


def test_each_clause_stands_once() -> None:
    assert [name for name, count in Counter(clause["id"] for clause in CLAUSES).items() if count > 1] == []


@pytest.mark.parametrize("test", sorted(NAMED))
def test_a_test_that_is_named_exists(test: str) -> None:
    assert test in in_file(test.partition("::")[0])


@pytest.mark.parametrize("file", MANIFEST["files"])
def test_a_test_of_the_protocol_holds_a_clause(file: str) -> None:
    assert in_file(file) - NAMED == set()
