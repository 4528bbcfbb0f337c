"""What a caller's headers may not tell Ray Serve: goes before Ray's own in every process that takes requests in, where
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names ``middlewares``.

Ray answers with the id that a request came with, whatever that is, and its header cannot be replaced from inside. And
it obeys anybody who asks it not to notice a caller that goes away, or to set no limit to the time.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from .request_id import harmless

_ID = b"x-request-id"
_ORDERS = {b"x-request-disconnect-disabled", b"x-request-timeout-seconds"}


def middlewares() -> list[Middleware]:
    """For Ray."""
    return [Middleware(_PlainHeaders)]


class _PlainHeaders:
    """Leaves a request no orders for Ray, and at most one id: the first that it came with where that is harmless, else
    a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope["headers"] = _plain(list(scope["headers"]))
        await self._app(scope, receive, send)


def _plain(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    plain = [header for header in headers if header[0] not in _ORDERS and header[0] != _ID]
    ids = [value for name, value in headers if name == _ID]
    return plain + [(_ID, harmless(value.decode("latin-1")).encode()) for value in ids[:1]]
