"""What a session store raises. Nothing else escapes from one.

StoreError
├── SessionExists       create: the id is taken
├── SessionNotFound     the session is unknown, deleted or expired
├── SessionConflict     update: somebody else updated the record first
├── StoreFull           create: the store holds as many live sessions as it may
└── StoreUnavailable    the backend is down, hangs or refuses; trying again later may help
    └── StoreUnusable   it refuses until somebody changes something: trying again does not help
"""

from __future__ import annotations


class StoreError(Exception):
    """The root of everything a session store raises."""


class SessionExists(StoreError):
    """`create_session`: a live session has this id already."""


class SessionNotFound(StoreError):
    """The session is unknown, deleted or expired: the three look the same."""


class SessionConflict(StoreError):
    """`update_session`: the stored record has another revision. Nothing was overwritten; read again."""


class StoreFull(StoreError):
    """`create_session`: the store's session limit is reached. No live session is evicted for a new one."""


class StoreUnavailable(StoreError):
    """The backend is down, hangs or refuses to work. What was acknowledged before is not lost by it."""


class StoreUnusable(StoreUnavailable):
    """`open`: the backend refuses until somebody changes something, and the message says what.

    A wrong password, a database of a newer version, a directory that is not there. The proxy starts while a
    store is merely down, and does not start on one that is unusable.
    """
