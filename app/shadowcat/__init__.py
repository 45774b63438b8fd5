"""Shadowcat: a reverse proxy for the Model Context Protocol, as an ASGI application."""

from shadowcat.factory import create_app, lifespan_of
from shadowcat.settings import Settings

__version__ = "0.1.0"

__all__ = ["Settings", "__version__", "create_app", "lifespan_of"]
