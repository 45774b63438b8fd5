"""The README's tables that repeat the code: made from it, so that they cannot say something else.

    python -m tests.docs.tables

writes them anew. `test_tables.py` fails while README.md has others.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadowcat import errors, settings

README = Path(__file__).resolve().parents[2] / "README.md"


def settings_table() -> str:
    """Return what can be set, its default, and its description in the code."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for struct in (settings.Deployment, settings.Settings):
        for name, text in _described(struct):
            rows.append(f"| `{name}` | {_default(struct, name)} | {_cell(text)} |")
    return "\n".join(rows)


def errors_table() -> str:
    """Return the proxy's own errors, by status."""
    rows = ["| status | code | reason | what happened |", "|---|---|---|---|"]
    for each in sorted(own_errors(), key=lambda each: (each.status, each.reason)):
        if each is errors.UpstreamBroke:
            continue  # the response has begun: no status can say it
        text = _cell(inspect.getdoc(each) or "")
        rows.append(f"| {each.status} | {each.code} | `{each.reason}` | {text} |")
    return "\n".join(rows)


def own_errors() -> list[type[errors.ShadowcatError]]:
    """Return those that clients are told of by a reason of their own."""
    return [each for each in _subclasses(errors.ShadowcatError) if "reason" in vars(each)]


def replaced(readme: str) -> str:
    """Return the README with its tables made anew."""
    for name, table in (("settings", settings_table()), ("errors", errors_table())):
        before, begin, rest = readme.partition(f"<!-- {name}: written by `python -m tests.docs.tables` -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        assert end, f"README.md has no place for the table of {name}"
        readme = f"{before}{begin}{table}\n{end}{after}"
    return readme


def _described(struct: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class with the string below each."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr), f"{field.target.id} says nothing of itself"
            assert isinstance(text.value, ast.Constant)
            yield field.target.id, str(text.value.value)


def _default(struct: Any, name: str) -> str:
    if name == "upstream":
        return "(to be given)"
    value = getattr(struct(upstream={}) if struct is settings.Deployment else struct(), name)
    if value in (None, (), ""):
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _subclasses(root: type[errors.ShadowcatError]) -> Iterator[type[errors.ShadowcatError]]:
    for each in root.__subclasses__():
        yield each
        yield from _subclasses(each)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(replaced(README.read_text("utf-8")), "utf-8")
