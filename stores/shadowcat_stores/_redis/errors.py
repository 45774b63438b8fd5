"""What a refusal or a failure of the server means to whoever runs it."""

from __future__ import annotations

from typing import Final

from shadowcat_stores._redis.driver import RedisClusterException, RedisConnectionError
from shadowcat_stores._redis.wire import Silent
from shadowcat_stores.errors import StoreUnavailable

_WORDS: Final = {
    "OOM": "it is out of memory: raise its maxmemory, or let sessions or tapes be fewer or smaller",
    "READONLY": "it is a read-only replica: give the address of the primary, or of the Sentinels",
    "MISCONF": "it refuses writes since it cannot save to its disk: see its log, and make room there",
    "NOREPLICAS": "it refuses writes since too few replicas are connected: see its min-replicas-to-write",
    "BUSY": "it is busy with a script: see its SLOWLOG",
    "WRONGTYPE": "the store's keys are in use by something else: give the store a prefix of its own",
    "max number of clients": "it has as many clients as it may: raise its maxclients",
    "protected mode": "it takes local clients only: see its protected-mode and bind",
}
"""By what the server says. Before Redis 7, what a script met is in the middle of a sentence."""

_SLOT: Final = "its cluster is moving the session's slot: try again when that is done"
_CLUSTER: Final = "it is a node of a cluster: use redis+cluster:// or a RedisCluster client"
_CLASSES: Final = {
    "OutOfMemoryError": _WORDS["OOM"],
    "ReadOnlyError": _WORDS["READONLY"],
    "BusyLoadingError": "it is loading its data: it will answer when that is done",
    "MasterDownError": "it is a replica cut off from its primary: give the address of the primary",
    "ClusterDownError": "its cluster is down: see CLUSTER INFO and CLUSTER NODES",
    "AuthenticationError": "it wants other credentials: mend the user name and password of the store's URL",
    "NoPermissionError": "its ACL forbids what the store needs (see shadowcat_stores.redis)",
    "TryAgainError": _SLOT,
    "AskError": _SLOT,
    "MovedError": _CLUSTER,
    "ClusterCrossSlotError": _CLUSTER,
    "MasterNotFoundError": "its Sentinels know no primary of that name: see SENTINEL MASTERS",
    "MaxConnectionsError": "the client has no connection left: raise its max_connections",
}
"""By the class of redis-py's exception, whose text leaves the code out."""


def unavailable(error: Exception) -> StoreUnavailable:
    """Return the error to raise for what went wrong, with what to do about it."""
    return StoreUnavailable(f"Redis is not available: {_meaning(error)}")


def _meaning(error: Exception) -> str:
    said = str(error)
    if isinstance(error, Silent):
        return f"{said}: see whether it hangs, or is overloaded"
    if isinstance(error, TimeoutError):
        return "it cannot be reached in time: see whether it runs, and mend the address or the network"
    found = _CLASSES.get(type(error).__name__)
    if found is None:
        found = next((meaning for word, meaning in _WORDS.items() if word in said), None)
    if found is None and isinstance(error, RedisConnectionError | RedisClusterException | OSError):
        found = "it cannot be reached: see whether it runs, and mend the address"
    return said or repr(error) if found is None else f"{found} ({said})"
