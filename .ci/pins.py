"""Print the part of `constraints.txt` that an installation needs, with versions and hashes as they are there.

    python .ci/pins.py [--extra NAME]... [--build] [--also PACKAGE]...

`constraints.txt` pins all of the development environment. An image of the runtime, the build of the wheel and
its test each need a part of it, and pip's `--require-hashes` installs all that a file lists. What a package
needs is read from the `# via` lines that the compiler leaves; pip refuses an incomplete list.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def normal(requirement: str) -> str:
    """Return the package name of a requirement, in the one spelling that compares."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    if found is None:
        raise SystemExit(f"no package name: {requirement!r}")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def blocks(constraints: str) -> dict[str, str]:
    """Return the lines of each package, by name."""
    parts = re.split(r"^(?=[A-Za-z0-9])", constraints, flags=re.MULTILINE)
    return {normal(part): part for part in parts if part[:1].isalnum()}


def needed_by(block: str) -> set[str]:
    """Return which packages need the one of this block."""
    _, _, via = block.partition("# via")
    return {normal(line.strip("# ")) for line in via.splitlines() if line.strip("# ")}


def closure(roots: Iterable[str], pinned: dict[str, str]) -> list[str]:
    """Return the roots and all that they need, in the file's order."""
    wanted = set(roots)
    if missing := sorted(wanted - pinned.keys()):
        raise SystemExit(f"not in constraints.txt: {', '.join(missing)}. Run `make constraints`.")
    needs = {name: needed_by(block) for name, block in pinned.items()}
    while more := {name for name, parents in needs.items() if name not in wanted and parents & wanted}:
        wanted |= more
    return [name for name in pinned if name in wanted]


def main() -> None:
    """Print the pins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extra", action="append", default=[], help="also what this optional extra needs")
    parser.add_argument("--build", action="store_true", help="what building the wheel needs, nothing else")
    parser.add_argument("--also", action="append", default=[], help="also this package, with what it needs")
    options = parser.parse_args()
    pyproject = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
    project = pyproject["project"]
    roots = pyproject["build-system"]["requires"] if options.build else list(project["dependencies"])
    for extra in options.extra:
        roots += project["optional-dependencies"][extra]
    pinned = blocks(Path("constraints.txt").read_text("utf-8"))
    names = closure({normal(each) for each in [*roots, *options.also]}, pinned)
    sys.stdout.write("".join(pinned[name] for name in names))


if __name__ == "__main__":
    main()
