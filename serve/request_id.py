"""The id that a request is known by: the same in its answer's header, in a problem's body and in the log.

Ray Serve answers with the id that a request came with, whatever that is, and its header cannot be replaced from inside.
So an id that is not harmless is replaced before Ray sees it: by ``middlewares``, which Ray asks for in every process
that takes requests in where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names them.
"""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_NAME = b"x-request-id"
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def harmless(given: str) -> str:
    """The id itself where it is short and plain, else a new one."""
    return given if _HARMLESS.fullmatch(given) else uuid4().hex


def middlewares() -> list[Middleware]:
    """What goes before Ray Serve's own."""
    return [Middleware(_HarmlessIds)]


class _HarmlessIds:
    """Leaves a request at most one id: the first that it came with where that is harmless, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = list(scope.get("headers", ()))
        if given := [value for name, value in headers if name == _NAME]:
            known = (_NAME, harmless(given[0].decode("latin-1")).encode())
            scope["headers"] = [header for header in headers if header[0] != _NAME] + [known]
        await self._app(scope, receive, send)
