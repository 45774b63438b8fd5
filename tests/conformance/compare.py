"""What was found directly and through the proxy, side by side."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ABSENT = "absent"
KNOWN = Path(__file__).with_name("differences.toml")


@dataclass(frozen=True)
class Check:
    """One thing that was tried, and how it came out."""

    scenario: str
    id: str
    outcome: str
    """What must be the same on both routes: the suite's status, an exit code, an output."""
    passed: bool
    message: str = ""


@dataclass(frozen=True)
class Difference:
    """A check that came out otherwise through the proxy."""

    leg: str
    scenario: str
    id: str
    direct: str
    through: str
    message: str = ""

    def __str__(self) -> str:
        what = f"{self.leg} | {self.scenario} | {self.id}: direct {self.direct}, through {self.through}"
        return f"{what}\n    {self.message}" if self.message else what


@dataclass(frozen=True)
class Known:
    """Differences that are on record, with why. The names are shell patterns."""

    legs: str
    scenario: str
    check: str
    reason: str

    def covers(self, difference: Difference) -> bool:
        """Return whether the difference is one of these."""
        return (
            fnmatchcase(difference.leg, self.legs)
            and fnmatchcase(difference.scenario, self.scenario)
            and fnmatchcase(difference.id, self.check)
        )


def read_known(path: Path = KNOWN) -> list[Known]:
    """Return what is on record."""
    return [Known(**entry) for entry in tomllib.loads(path.read_text("utf-8")).get("difference", [])]


def differences(leg: str, direct: Iterable[Check], through: Iterable[Check]) -> list[Difference]:
    """Return the checks that differ, one by one: the nth of an id on one route is the nth on the other."""
    ours, theirs = _numbered(through), _numbered(direct)
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        before, after = theirs.get(key), ours.get(key)
        outcomes = [ABSENT if check is None else check.outcome for check in (before, after)]
        if outcomes[0] != outcomes[1]:
            message = (after or before or _NOTHING).message or (before or _NOTHING).message
            found.append(Difference(leg, key[0], key[1], outcomes[0], outcomes[1], message))
    return found


def settle(found: Sequence[Difference], known: Sequence[Known], legs: Iterable[str]) -> list[str]:
    """Return what is wrong: differences that are not on record, and records, for one of these legs, of
    differences that are no more."""
    new = [str(each) for each in found if not any(entry.covers(each) for entry in known)]
    run = list(legs)
    gone = [
        f"on record, and no difference any more: {entry.legs} | {entry.scenario} | {entry.check}"
        for entry in known
        if any(fnmatchcase(leg, entry.legs) for leg in run) and not any(entry.covers(each) for each in found)
    ]
    return new + gone


_NOTHING = Check("", "", ABSENT, passed=False)


def _numbered(checks: Iterable[Check]) -> dict[tuple[str, str, int], Check]:
    numbered: dict[tuple[str, str, int], Check] = {}
    seen: dict[tuple[str, str], int] = {}
    for check in checks:
        name = (check.scenario, check.id)
        seen[name] = seen.get(name, 0) + 1
        numbered[(*name, seen[name])] = check
    return numbered
