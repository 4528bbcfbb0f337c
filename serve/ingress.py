"""The Ingress: HTTP and Python callers come in here. Holds the keys; never opens media."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from typing import Any
from uuid import uuid4

from fastapi import FastAPI

from lipsync.core import Fragment
from lipsync.errors import WorkerLost
from lipsync.media.source import Blob
from lipsync.options import Options
from lipsync.output import stream_bytes

from .auth import Keys
from .doors import refuse_open_doors
from .faults import fault_of
from .http import Http
from .metrics import RayMeters
from .presence import Presence
from .requests import Desk, Request
from .settings import Settings
from .stages import Handles

_BLOCK = 1 << 20
_DESCRIBES_WITHIN_S = 5.0


class Ingress:
    """``preprocessor``, ``renderer``, ``generator`` and ``admission`` are handles of the other deployments.

    The methods are for Python callers, through ``serve.get_app_handle(...)``; ``serve.handle`` makes them comfortable.
    """

    def __init__(self, settings: Settings, preprocessor: Any, renderer: Any, generator: Any, admission: Any) -> None:
        refuse_open_doors(settings)
        self._settings = settings
        self._generator = generator
        self._desk = Desk(settings, Handles(preprocessor, renderer), admission, RayMeters())
        self._http = Http(settings, self._desk, Keys(settings.auth), models=self._models, is_whole=Presence().is_whole)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for it once, after construction."""
        return self._http.api()

    def check_health(self) -> None:
        """Ray calls this now and then: its exporter forgets a gauge that it has not heard of for twenty seconds; and
        the time to remove what is old."""
        self._desk.refresh()
        self._desk.sweep()

    async def _models(self) -> list[dict[str, Any]]:
        """What a Generator says of itself. Raises WorkerLost where none answers in time."""
        try:
            async with asyncio.timeout(_DESCRIBES_WITHIN_S):
                return [await self._generator.describe.remote()]
        except Exception as error:
            if isinstance(error, TimeoutError) or fault_of(error) is not None:
                raise WorkerLost("No Generator answers. Try again when /readyz says that one runs.") from error
            raise

    async def lipsync(self, face: bytes, audio: bytes, options: dict[str, Any] | None = None) -> bytes:
        """The bytes of an mp4. Raises the library's errors."""
        async with self._told() as request_id, AsyncExitStack() as stack:
            request, fragments = await self._called(stack, request_id, face, audio, options, soon=False)
            path = await self._desk.result(request, fragments)
            return await asyncio.to_thread(path.read_bytes)

    async def stream(
        self, face: bytes, audio: bytes, options: dict[str, Any] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A fragmented mp4, piece by piece. Raises the library's errors."""
        async with self._told() as request_id, AsyncExitStack() as stack:
            _, fragments = await self._called(stack, request_id, face, audio, options, soon=True)
            async with aclosing(stream_bytes(fragments)) as pieces:
                async for data in pieces:
                    yield data

    async def faces(self, face: bytes, options: dict[str, Any] | None = None) -> str:
        """Boxes as JSON. Raises the library's errors."""
        async with self._told() as request_id, AsyncExitStack() as stack:
            request = await self._desk.enter(stack, request_id=request_id, key="")
            blob = await self._spooled(request, "face", face)
            return await self._desk.boxes(request, face=blob, options=Options.from_mapping(options or {}))

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[str]:
        """A request's id; what goes wrong is counted and logged as it is for callers over HTTP, and raised as it is."""
        request_id = uuid4().hex
        try:
            yield request_id
        except Exception as error:
            self._desk.refuse(error, request_id=request_id)
            raise

    async def _called(
        self,
        stack: AsyncExitStack,
        request_id: str,
        face: bytes,
        audio: bytes,
        options: dict[str, Any] | None,
        *,
        soon: bool,
    ) -> tuple[Request, AsyncGenerator[Fragment, None]]:
        request = await self._desk.enter(stack, request_id=request_id, key="")
        spooled, heard = await self._spooled(request, "face", face), await self._spooled(request, "audio", audio)
        chosen = Options.from_mapping(options or {})
        return request, self._desk.fragments(request, face=spooled, voice=heard, options=chosen, soon=soon)

    async def _spooled(self, request: Request, name: str, data: bytes) -> Blob:
        limits = self._settings.limits
        largest = max(limits.video_bytes, limits.image_bytes, limits.audio_bytes)
        with closing(request.folder.file(name, limit_bytes=largest)) as file:
            for start in range(0, len(data), _BLOCK):
                file.write(data[start : start + _BLOCK])
                await asyncio.sleep(0)  # hashing 200 MB takes a second: others have their turn
            return file.blob()
