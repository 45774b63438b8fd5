"""To be somebody who may do less: the superuser, whom tests often run as, may write anywhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NOBODY = 65_534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody in particular for a while, if this is the superuser."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Take these rights from files that are made meanwhile."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
