"""The code blocks and links of the documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    document: str
    line: int
    language: str
    kind: str
    """The first word of a comment right before it: `<!-- serves … -->`, `<!-- module … -->`."""
    names: tuple[str, ...]
    """The other words of that comment."""
    text: str

    @property
    def serves(self) -> tuple[str, ...]:
        """Where the `app` that the block makes answers MCP."""
        return self.names if self.kind == "serves" else ()

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(language: str, *kinds: str) -> list[Block]:
    """Return the blocks in a language, of all documents: those of the kinds, or all that need no test of
    their own."""
    pattern = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = []
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start(3)) + 1
            kind, *names = (match[1] or "").split() or [""]
            found.append(Block(document.name, line, match[2], kind, tuple(names), match[3]))
    return [each for each in found if each.language == language and each.kind in (kinds or ("", "serves"))]


def links() -> list[tuple[Path, str]]:
    """Return every link that stays in the repository, with the document it is in."""
    return [
        (document, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
        if "://" not in target
    ]
