"""What the upstream has to say on one stream, and how far that has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.upstream import Connection


@dataclass
class Log:
    """The messages of one stream, in order: the event store of a server that has one."""

    name: str
    session: str
    messages: list[bytes] = field(default_factory=list)
    is_whole: bool = False
    follower: Connection | None = None
    """The one connection that gets them: a newer one takes over."""
    hurries: bool = False
    """Whether it does not wait for the client any more."""
    polls: int = 0
    """After how many messages a connection ends, in good order and before its time; 0: never."""
    begun: int = 0
    """How often the client had begun it anew when last looked at."""
    passed: int = 0
    """Messages that nobody will be given any more: a stream without a cursor begins after them."""


def event_id(stream: str, number: int) -> str:
    """Return the id that a resumable upstream gives the message of this number."""
    return f"{stream.replace(' ', '-')}/{number}"
