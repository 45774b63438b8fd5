"""What a refusal or a failure of the server means to whoever runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ssl import SSLCertVerificationError
from typing import Final

from shadowcat_stores._redis.driver import RedisClusterException, RedisConnectionError
from shadowcat_stores._redis.wire import Silent
from shadowcat_stores.errors import StoreUnavailable, StoreUnusable

FOREIGN: Final = "the store's keys are in use by something else: give the store a prefix of its own"
_CREDENTIALS: Final = "it wants other credentials: mend the user name and password of the store's URL"
_SENTINELS: Final = "its Sentinels want other credentials: mend sentinel_username and sentinel_password"
_ACL: Final = "its ACL forbids what the store needs (see shadowcat_stores.redis)"
_LOCAL: Final = "it takes local clients only: see its protected-mode and bind"
_CLUSTER: Final = "it is a node of a cluster: use redis+cluster:// or a RedisCluster client"
_NO_CLUSTER: Final = "it is no cluster: use redis:// or a Redis client"
_DATABASE: Final = "it has no such database: mend the number at the end of the store's URL"
_CERTIFICATE: Final = "its certificate is not trusted: see ssl_ca_certs, and the host in the store's URL"
_FOR_GOOD: Final = frozenset(
    {FOREIGN, _CREDENTIALS, _SENTINELS, _ACL, _LOCAL, _CLUSTER, _NO_CLUSTER, _DATABASE, _CERTIFICATE}
)
"""What lasts until somebody changes something. All else may heal: a server starts, a disk gets room."""

_WORDS: Final = {
    "OOM": "it is out of memory: raise its maxmemory, or let sessions or tapes be fewer or smaller",
    "READONLY": "it is a read-only replica: give the address of the primary, or of the Sentinels",
    "MISCONF": "it refuses writes since it cannot save to its disk: see its log, and make room there",
    "NOREPLICAS": "it refuses writes since too few replicas are connected: see its min-replicas-to-write",
    "BUSY": "it is busy with a script: see its SLOWLOG",
    "WRONGTYPE": FOREIGN,
    "max number of clients": "it has as many clients as it may: raise its maxclients",
    "protected mode": _LOCAL,
    "cluster support disabled": _NO_CLUSTER,
    "DB index is out of range": _DATABASE,
}
"""By what the server says. Before Redis 7, what a script met is in the middle of a sentence."""

_SLOT: Final = "its cluster is moving the session's slot: try again when that is done"
_CLASSES: Final = {
    "OutOfMemoryError": _WORDS["OOM"],
    "ReadOnlyError": _WORDS["READONLY"],
    "BusyLoadingError": "it is loading its data: it will answer when that is done",
    "MasterDownError": "it is a replica cut off from its primary: give the address of the primary",
    "ClusterDownError": "its cluster is down: see CLUSTER INFO and CLUSTER NODES",
    "AuthenticationError": _CREDENTIALS,
    "AuthenticationWrongNumberOfArgsError": _CREDENTIALS,
    "NoPermissionError": _ACL,
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
    return StoreUnavailable(f"Redis is not available: {_said(error, _meaning(error))}")


def not_opened(error: Exception) -> StoreUnavailable:
    """Return the error that `open` is to raise: `StoreUnusable` where no waiting heals it."""
    meaning = _meaning(error)
    if meaning in _FOR_GOOD:
        return StoreUnusable(f"Redis cannot be used: {_said(error, meaning)}")
    return unavailable(error)


def _said(error: Exception, meaning: str | None) -> str:
    said = str(error)
    if isinstance(error, Silent):
        return f"{said}: see whether it hangs, or is overloaded"
    if isinstance(error, TimeoutError):
        return "it cannot be reached in time: see whether it runs, and mend the address or the network"
    return said or repr(error) if meaning is None else f"{meaning} ({said})"


def _meaning(error: Exception) -> str | None:
    # redis-py wraps what it met, so the first cause says most.
    for each in reversed(list(_causes(error))):
        found = _meaning_of(each)
        if found is not None:
            return found
    if isinstance(error, RedisConnectionError | RedisClusterException | OSError):
        return "it cannot be reached: see whether it runs, and mend the address"
    return None


def _meaning_of(error: BaseException) -> str | None:
    if isinstance(error, SSLCertVerificationError):
        return _CERTIFICATE
    name, said = type(error).__name__, str(error)
    if name == "MasterNotFoundError" and set(re.findall(r"\w+Error\b", said)) == {"AuthenticationError"}:
        # It tells of the error that it met at each Sentinel.
        return _SENTINELS
    found = _CLASSES.get(name)
    return found or next((meaning for word, meaning in _WORDS.items() if word in said), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
