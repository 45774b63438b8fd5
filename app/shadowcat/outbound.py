"""What a request and its response look like on the other side of the proxy."""

from __future__ import annotations

from typing import Final

from shadowcat import protocol
from shadowcat.headers import HOP_BY_HOP, Headers, end_to_end
from shadowcat.inbound import ClientRequest
from shadowcat.settings import Settings
from shadowcat.upstream import OutboundRequest, Upstream
from shadowcat_stores import Session

# Rewritten for the upstream's side: its own address, its own session id, the length of what we send.
_REPLACED: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect"}


_NOT_HANDED_ON: Final = HOP_BY_HOP | {protocol.SESSION_ID}


def prepare_request(request: ClientRequest, session: Session | None, upstream: Upstream) -> OutboundRequest:
    """Return what goes upstream: what came, with the upstream's address and session id for ours."""
    headers: Headers = [(b"host", upstream.host)]
    for pair in end_to_end(request.headers, _REPLACED):
        name = pair[0]
        if name == protocol.SESSION_ID:
            # A request without a session of ours must not reach one of the upstream's by naming its id.
            if session is not None and session.upstream_session_id is not None:
                headers.append((name, session.upstream_session_id.encode("latin-1")))
        elif name == b"origin" and request.is_own_origin:
            # Same-origin to us is same-origin to the upstream, whose own check it must pass.
            headers.append((name, upstream.origin))
        else:
            headers.append(pair)
    if request.method == "POST" or request.body:
        headers.append((b"content-length", b"%d" % len(request.body)))
    return OutboundRequest(request.method, headers, request.body, request.query)


def response_headers(came: Headers, session: Session | None, settings: Settings) -> Headers:
    """Return what the client gets: what came, with our session id for the upstream's."""
    if settings.session_ids == "upstream" and (session is None or session.upstream_session_id == session.id):
        return end_to_end(came)
    headers = end_to_end(came, _NOT_HANDED_ON)
    if session is not None:
        headers.append((protocol.SESSION_ID, session.id.encode("latin-1")))
    return headers
