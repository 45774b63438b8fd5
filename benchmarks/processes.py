"""Child processes that are pinned to a core, read through `/proc` and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Cores:
    """Which core does what; `None` = wherever the system puts it."""

    proxy: int | None
    stub: int | None
    load: int | None

    @classmethod
    def choose(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            return cls(None, None, None)
        return cls(cores[0], cores[1], cores[2] if len(cores) > 2 else cores[1])

    def __str__(self) -> str:
        if self.proxy is None:
            return "one core for all: rates and latencies say little here"
        return f"proxy on core {self.proxy}, stub on core {self.stub}, load on core {self.load}"


class Children:
    """`with Children() as children:` what is started inside ends with the block, however that ends."""

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="shadowcat-bench-"))
        self.processes: list[subprocess.Popen[bytes]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            _kill(process)
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, name: str, argv: list[str], core: int | None) -> subprocess.Popen[bytes]:
        """Start a server in a process group of its own, so that Ctrl-C reaches us alone."""
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: _settle(core),
            )
        self.processes.append(process)
        return process

    def start_server(
        self, name: str, argv: list[str], core: int | None, port: int
    ) -> subprocess.Popen[bytes]:
        """Start a server and wait until it accepts connections on `port`."""
        process = self.start(name, argv, core)
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return process
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                break
        tail = self.log(name).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{name} did not come up on port {port}:\n{tail}")

    def run(self, argv: list[str], core: int | None, limit: float) -> str:
        """Run a command to its end and give back what it printed."""
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: _settle(core),
        )
        self.processes.append(process)
        try:
            out, problem = process.communicate(timeout=limit)
        finally:
            self.stop(process.pid)
        if process.returncode:
            raise RuntimeError(f"{argv[2:4]} failed:\n{problem.decode()[-2000:]}")
        return out.decode()

    def stop(self, pid: int) -> None:
        """End a server before the others, at once."""
        process = next(each for each in self.processes if each.pid == pid)
        self.processes.remove(process)
        _kill(process)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


LIBC = ctypes.CDLL(None)


def _settle(core: int | None) -> None:
    """In the child, before it runs: its core, and to go when we go, whatever becomes of us."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    end_with_parent()


def end_with_parent() -> None:
    """Have the system end this process when the one that started it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs one of this package's modules."""
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]


def raise_file_limit() -> int:
    """Let this process, and those that it starts, have as many open files as they may; how many that is."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# /proc


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(entry)[1]), []).append(int(entry.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its descendants since they started."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            # Its CPU clock (clock_getcpuclockid): what /proc/PID/stat says in steps of 10 ms, exactly.
            total += time.clock_gettime(~member << 3 | 2)
    return total


def machine_seconds() -> float:
    """CPU time that all programs of the machine have used, and what its host has taken from it."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, steal = fields[0], fields[1], fields[2], fields[7]
    return (user + nice + system + steal) / TICKS


def rss_bytes(pid: int) -> int:
    """Resident memory of the process and its descendants; pages that they share count for each."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
    return total


def open_files(pid: int) -> int:
    """File descriptors of the process and its descendants."""
    return sum(len(list(Path(f"/proc/{member}/fd").iterdir())) for member in family(pid))


def queued_bytes(ports: set[int]) -> int:
    """What the kernel holds, in send and receive queues, of the connections that touch one of the ports."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues = line.split()[:5]
        if {int(local.split(":")[1], 16), int(remote.split(":")[1], 16)} & ports:
            total += sum(int(size, 16) for size in queues.split(":"))
    return total


def _stat(path: Path) -> list[str]:
    """The fields after the command's name: state, parent, …"""
    return path.read_text().rpartition(")")[2].split()
