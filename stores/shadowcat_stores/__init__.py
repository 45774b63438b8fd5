"""Session stores for Shadowcat: the contract, the records, and the stores that come with it."""

import importlib
import typing

from shadowcat_stores.base import Clock, SessionStore
from shadowcat_stores.errors import (
    SessionConflict,
    SessionExists,
    SessionNotFound,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
)
from shadowcat_stores.keyvalue import KeyValueStore
from shadowcat_stores.memory import MemoryStore
from shadowcat_stores.records import (
    GET_STREAM,
    Direction,
    Frame,
    JsonRpcId,
    Kind,
    MessageEnvelope,
    Session,
    SessionPage,
    StoreLimits,
    StreamClaim,
    Window,
)
from shadowcat_stores.sqlite import SQLiteStore
from shadowcat_stores.urls import store_from_url

if typing.TYPE_CHECKING:
    from shadowcat_stores.redis import RedisStore as RedisStore
else:

    def __getattr__(name):
        # `RedisStore` is not in `__all__`, so that all there is can be had without its extra.
        if name != "RedisStore":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module("shadowcat_stores.redis").RedisStore


__all__ = [
    "GET_STREAM",
    "Clock",
    "Direction",
    "Frame",
    "JsonRpcId",
    "KeyValueStore",
    "Kind",
    "MemoryStore",
    "MessageEnvelope",
    "SQLiteStore",
    "Session",
    "SessionConflict",
    "SessionExists",
    "SessionNotFound",
    "SessionPage",
    "SessionStore",
    "StoreError",
    "StoreFull",
    "StoreLimits",
    "StoreUnavailable",
    "StoreUnusable",
    "StreamClaim",
    "Window",
    "store_from_url",
]
