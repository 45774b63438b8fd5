"""What the tests of restored sessions ask for."""

from __future__ import annotations

import pytest

from tests.support.forgetful import ForgetfulServer
from tests.support.upstream import ScriptedUpstream


@pytest.fixture
def server(upstream: ScriptedUpstream) -> ForgetfulServer:
    """A server that keeps sessions, on the scripted upstream."""
    return ForgetfulServer(upstream)
