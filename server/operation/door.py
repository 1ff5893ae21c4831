"""The door: the one port that devices reach. It passes a SuperLink's fleet calls, and nothing else.

A SuperLink serves on one port what nodes call, what operators call (register a key, run any code on server and nodes)
and what its own apps call (read every message). Only the first is signed. So the SuperLink listens on this machine
alone, and what comes from outside is read here, checked, and sent on as a new request.

Run as ``python -m fedrecall.server.operation.door`` by ``fedrecall server up``.
"""

import argparse
import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_CALLS = ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages")
_OBJECTS = ("get-run", "get-fab", "push-object", "pull-object", "confirm-message-received")
PATHS = tuple(f"/v1/fleet/{call}" for call in (*_CALLS, *_OBJECTS))
"""What passes. Nodes cannot register themselves where authentication is on, so that call is not among them."""

_HEADERS = ("content-type", "accept")
_OWN_HEADERS = "flwr-"
_TIMEOUT_S = 60.0
_CONNECTIONS, _CALLERS = 256, 1024
"""Connections to the SuperLink, and calls from outside that are served at once; the next one is told to come back."""


def door(upstream: str, authority: Path, *, max_bytes: int) -> Starlette:
    """Return the door to the SuperLink at ``upstream``.

    Args:
        upstream: base address of the SuperLink, on this machine.
        authority: certificate that vouches for it.
        max_bytes: of a request's body at most; more is refused unread.
    """
    trust = ssl.create_default_context(cafile=str(authority))
    limits = httpx.Limits(max_connections=_CONNECTIONS)
    # One client serves all nodes: it must carry nothing from the answer to one over to another.
    forgetful = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    client = httpx.AsyncClient(
        base_url=upstream, verify=trust, timeout=_TIMEOUT_S, limits=limits, trust_env=False, cookies=forgetful
    )

    async def pass_on(request: Request) -> Response:
        body = await _bounded(request, max_bytes)
        if body is None:
            return Response(status_code=413)
        names = [name for name in request.headers if name in _HEADERS or name.startswith(_OWN_HEADERS)]
        headers = {name: request.headers[name] for name in names}
        try:
            answer = await client.post(request.url.path, content=body, headers=headers)
        except httpx.TransportError:
            # Nodes take this for a pause, and try again.
            return Response(status_code=503)
        kept = {name: answer.headers[name] for name in ("content-type",) if name in answer.headers}
        return Response(answer.content, status_code=answer.status_code, headers=kept)

    return Starlette(routes=[Route(path, pass_on, methods=["POST"]) for path in PATHS])


async def _bounded(request: Request, max_bytes: int) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            return None
        body += chunk
    return bytes(body)


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--authority", type=Path, required=True)
    parser.add_argument("--max-bytes", type=int, required=True)
    given = parser.parse_args()
    # No access log: who called when is who took part.
    uvicorn.run(
        door(given.upstream, given.authority, max_bytes=given.max_bytes),
        host=given.host,
        port=given.port,
        ssl_certfile=str(given.certificate),
        ssl_keyfile=str(given.key),
        access_log=False,
        server_header=False,
        log_level="warning",
        limit_concurrency=_CALLERS,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
