"""`shadowcat.asgi:app`, configured by environment variables: for uvicorn, gunicorn and Docker.

The only module that reads the environment. `app` is made when a server asks for it, so importing the module
does nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from starlette.applications import Starlette

from shadowcat.factory import create_app
from shadowcat.settings import Deployment
from shadowcat_stores import store_from_url

_CANNOT_START: Final = 3
"""The exit code by which uvicorn and gunicorn say so as well; gunicorn starts no further worker after it."""


def deployment_from_environment(overrides: Mapping[str, Any] | None = None) -> Deployment:
    """Return the deployment that the environment describes, with `overrides` (a command's options) on top.

    Raises:
        ValueError: a setting is missing, unknown or out of range; the message names it and the remedy.
    """
    return Deployment.load(os.environ, overrides)


def app_of(deployment: Deployment) -> Starlette:
    """Return the app of the deployment, with a store of its own.

    Raises:
        ValueError: there is no store at the deployment's URL; the message names the remedy.
    """
    return create_app(store_from_url(deployment.store), upstream=deployment.upstream, settings=deployment)


def __getattr__(name: str) -> Starlette:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return app_of(deployment_from_environment())
    except ValueError as exc:
        # A server would bury the message under a traceback of its own.
        sys.stderr.write(f"Error: {exc}\n")
        raise SystemExit(_CANNOT_START) from None
