"""From a URL to a store, at the deployment edge only: the library takes store instances."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from urllib.parse import urlsplit

from shadowcat_stores.base import SessionStore

ENTRY_POINTS = "shadowcat.stores"
"""The entry point group: a name is a URL scheme, its object takes the URL (`from_url`) or nothing."""


def store_from_url(url: str) -> SessionStore:
    """Return the store that the URL names, not yet open.

    `memory://` is built in; other schemes are entry points of the group `shadowcat.stores`, whose object
    is a store class with a class method `from_url(url)`.

    Raises:
        ValueError: no store is installed for the scheme, or something it needs is missing; the message says
            what there is, or what to install.
    """
    scheme = urlsplit(url).scheme
    if not scheme:
        raise ValueError("the store is named by a URL, such as memory:// or sqlite:///shadowcat.db")
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme not in found:
        known = ", ".join(f"{name}://" for name in sorted(found))
        # The URL itself stays out of the message: it may hold a password.
        raise ValueError(f"no store is installed for {scheme + '://'!r}: the known ones are {known}")
    return _load(found[scheme], url)


def _load(point: EntryPoint, url: str) -> SessionStore:
    try:
        store_class = point.load()
    except ImportError as exc:
        raise ValueError(f"the store of {point.name}:// cannot be loaded: {exc}") from exc
    store: SessionStore = store_class.from_url(url)
    return store
