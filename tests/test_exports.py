"""What the packages promise to those who import them."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import shadowcat
import shadowcat_stores

PACKAGES = [shadowcat, shadowcat_stores]
PROMISED = {
    "shadowcat": {"Settings", "create_app", "lifespan_of"},
    "shadowcat_stores": {"Frame", "MemoryStore", "Session", "SessionStore", "store_from_url"},
}
"""What is documented: to take one of them away breaks a user."""


@pytest.mark.parametrize("package", PACKAGES)
def test_all_says_exactly_what_is_public(package: ModuleType) -> None:
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert set(package.__all__) - {"__version__"} == public


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_promised_is_there(package: ModuleType) -> None:
    assert PROMISED[package.__name__] <= set(package.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_class_and_function_says_what_it_is_for(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{package.__name__}.{name} has no docstring"
