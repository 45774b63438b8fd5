"""What the proxy counts. `/metrics` shows it in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Reason = Literal["forward", "recover"]
"""Why a request went upstream: for a client's request, or to recover a session or a stream."""


class Counters:
    """Plain numbers that only grow. `client_requests` and `upstream_requests` make *exactly one* an audit."""

    def __init__(self) -> None:
        self.client_requests = 0
        self.upstream_requests: dict[Reason, int] = {"forward": 0, "recover": 0}
        self.sessions_restored = 0
        self.frames_recorded = 0
        self.frames_dropped = 0
        self.frames_outrun = 0
        """Those that newer ones had pushed out of the window before they were written."""

    def exposition(self, gauges: dict[str, int]) -> str:
        """Return all as Prometheus text: https://prometheus.io/docs/instrumenting/exposition_formats/."""
        return "\n".join((*self._counters(), *self._gauges(gauges), ""))

    def _counters(self) -> Iterator[str]:
        for name, value in (
            ("client_requests", self.client_requests),
            ("sessions_restored", self.sessions_restored),
            ("frames_recorded", self.frames_recorded),
            ("frames_dropped", self.frames_dropped),
            ("frames_outrun", self.frames_outrun),
        ):
            yield f"# TYPE shadowcat_{name}_total counter"
            yield f"shadowcat_{name}_total {value}"
        yield "# TYPE shadowcat_upstream_requests_total counter"
        for reason, count in self.upstream_requests.items():
            yield f'shadowcat_upstream_requests_total{{reason="{reason}"}} {count}'

    def _gauges(self, gauges: dict[str, int]) -> Iterator[str]:
        for name, value in gauges.items():
            yield f"# TYPE shadowcat_{name} gauge"
            yield f"shadowcat_{name} {value}"
