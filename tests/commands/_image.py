"""Follows a Dockerfile where there is no Docker: each stage becomes a virtual environment and a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 300.0
"""Seconds that one RUN may take: it installs packages."""


@dataclass
class Instruction:
    """One line of a Dockerfile, its continuations joined."""

    name: str
    flags: list[str]
    text: str

    @property
    def argv(self) -> list[str]:
        """The words of a `["…", "…"]` form."""
        words: list[str] = json.loads(self.text[self.text.index("[") :])
        return words


@dataclass
class Stage:
    """What is between one FROM and the next."""

    name: str
    base: str
    own: list[Instruction] = field(default_factory=list)


class Dockerfile:
    """The stages by name, in order."""

    def __init__(self, text: str) -> None:
        self.stages: dict[str, Stage] = {}
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            name, _, rest = line.partition(" ")
            flags = re.findall(r"(?:^|(?<=\s))--[a-z-]+=\S+(?=\s)", re.split(r"CMD|python", rest)[0])
            for flag in flags:
                rest = rest.replace(flag, "", 1)
            if name == "FROM":
                base, _, stage = rest.strip().partition(" AS ")
                self.stages[stage] = Stage(stage, base)
            else:
                self.last.own.append(Instruction(name, flags, rest.strip()))

    @property
    def last(self) -> Stage:
        """The stage that is built where none is named."""
        return list(self.stages.values())[-1]

    def instructions(self, stage: str) -> list[Instruction]:
        """Return the instructions of a stage after those of the stages it is based on."""
        if stage not in self.stages:
            return []
        return [*self.instructions(self.stages[stage].base), *self.stages[stage].own]

    def value(self, stage: str, name: str) -> Instruction:
        """Return the last instruction of this name."""
        return [each for each in self.instructions(stage) if each.name == name][-1]


class Image:
    """A stage, built."""

    def __init__(
        self, dockerfile: Dockerfile, stage: str, directory: Path, mounted: Path | None = None
    ) -> None:
        self.directory = directory
        self.bin = directory / "venv" / "bin"
        self.workdir = directory
        self.env: dict[str, str] = {}
        self.users: list[str] = []
        self._mounted = mounted
        venv.create(directory / "venv", with_pip=True, symlinks=True)
        self._stub("useradd")
        self._stub("chown")
        for instruction in dockerfile.instructions(stage):
            if step := getattr(self, f"_{instruction.name.lower()}", None):
                step(instruction)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process in the image: nothing of the developer's but where programs are."""
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            **_registry(),
            **self.env,
        }

    def packages(self) -> set[str]:
        """Return the names of what is installed."""
        argv = [str(self.bin / "python"), "-m", "pip", "list", "--format=json"]
        listed = subprocess.run(argv, check=True, capture_output=True, env=self.environment, timeout=DEADLINE)
        return {each["name"].lower() for each in json.loads(listed.stdout)}

    def _stub(self, command: str) -> None:
        path = self.bin / command
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.directory}/{command}\n')
        path.chmod(0o755)

    def _workdir(self, instruction: Instruction) -> None:
        self.workdir = self.directory / "root" / instruction.text.lstrip("/")
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _env(self, instruction: Instruction) -> None:
        self.env |= dict(pair.split("=", 1) for pair in instruction.text.split())

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.text.split()
        admitted = (ROOT / ".dockerignore").read_text().splitlines()
        for source in sources:
            assert f"!{source}" in admitted, f".dockerignore keeps {source} out"
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, self.workdir / target, ignore=ignored)
            else:
                shutil.copy(ROOT / source, self.workdir / target)

    def _run(self, instruction: Instruction) -> None:
        command = instruction.text
        if self._mounted is not None and instruction.flags:
            command = re.sub(r"(?<=\s)/build(?=/)", str(self._mounted), command)
        ran = subprocess.run(
            ["/bin/sh", "-ec", command],
            cwd=self.workdir,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
        )
        assert ran.returncode == 0, f"RUN {command}\n{ran.stdout}"


def _registry() -> dict[str, str]:
    """Where pip finds packages is the machine's affair."""
    return {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))
    }


def compose(text: str) -> dict[str, Any]:
    """Return what a compose file says: mappings by indentation, lists in brackets. No other YAML is in it."""
    root: dict[str, Any] = {}
    levels: list[tuple[int, dict[str, Any]]] = [(-1, root)]
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        while levels[-1][0] >= indent:
            levels.pop()
        key, _, value = line.strip().partition(":")
        value = value.strip()
        inner: dict[str, Any] = {}
        levels[-1][1][key] = json.loads(value) if value.startswith("[") else value or inner
        levels.append((indent, inner))
    return root
