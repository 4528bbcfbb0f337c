"""The client for callers with an event loop (asyncio)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from lipsync.client.calls import (
    READY_TIMEOUT_S,
    Calls,
    boxes,
    document,
    json_receiver,
    result_receiver,
    stream_result,
    whole_result,
)
from lipsync.client.exchange import RECOVERABLE, Exchange, Retries
from lipsync.client.receive import Result, Resumed
from lipsync.client.upload import OnTransfer
from lipsync.core import Source
from lipsync.options import Options

if TYPE_CHECKING:
    from lipsync.faces.given import GivenBoxes


class AsyncClient:
    """``Client`` with ``await``. Cancelling a call closes its connection, which ends its work on the server.

    Inputs are read on threads; ``progress`` is called in the event loop.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        timeout_s: float | None = 900.0,
        retries: Retries | None = None,
    ) -> None:
        self._calls = Calls(url=url, api_key=api_key, timeout_s=timeout_s, retries=retries or Retries())
        self._http = httpx.AsyncClient(base_url=url, headers=self._calls.headers)

    async def lipsync(
        self,
        face: Source,
        audio: Source,
        *,
        output_path: str | os.PathLike[str] | None = None,
        options: Options | None = None,
        progress: OnTransfer | None = None,
        request_id: str | None = None,
    ) -> Result:
        """See ``Client.lipsync``."""
        with result_receiver(output_path) as receiver:
            make = partial(
                self._calls.lipsync,
                face,
                audio,
                receiver=receiver,
                options=options,
                progress=progress,
                request_id=request_id,
            )
            exchange = await asyncio.to_thread(make)
            await self._run(exchange)
            return whole_result(exchange, receiver)

    def stream(
        self,
        face: Source,
        audio: Source,
        *,
        options: Options | None = None,
        progress: OnTransfer | None = None,
        request_id: str | None = None,
    ) -> AsyncStream:
        """See ``Client.stream``. A file object is read before this returns."""
        receiver = Resumed()
        exchange = self._calls.lipsync(
            face, audio, receiver=receiver, options=options, progress=progress, request_id=request_id
        )
        return AsyncStream(exchange, receiver, self._pieces(exchange))

    async def faces(
        self, face: Source, *, options: Options | None = None, progress: OnTransfer | None = None
    ) -> GivenBoxes:
        """See ``Client.faces``."""
        receiver = json_receiver()
        make = partial(self._calls.faces, face, receiver=receiver, options=options, progress=progress)
        await self._run(await asyncio.to_thread(make))
        return boxes(receiver)

    async def models(self) -> Any:
        """See ``Client.models``."""
        return await self._document("v1/models")

    async def limits(self) -> Any:
        """See ``Client.limits``."""
        return await self._document("v1/limits")

    async def is_ready(self) -> bool:
        """See ``Client.is_ready``."""
        try:
            return (await self._http.get("readyz", timeout=READY_TIMEOUT_S)).status_code == 200
        except httpx.TransportError:
            return False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _document(self, path: str) -> Any:
        receiver = json_receiver()
        await self._run(self._calls.get(path, receiver=receiver))
        return document(receiver)

    async def _run(self, exchange: Exchange) -> None:
        async with aclosing(self._pieces(exchange)) as pieces:
            async for _ in pieces:
                pass  # the receiver has kept them

    async def _pieces(self, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        while True:
            try:
                async with aclosing(await self._http.send(exchange.next_request(self._http), stream=True)) as response:
                    exchange.begin(response)
                    async for data in response.aiter_bytes():
                        if media := exchange.feed(data):
                            yield media
                exchange.finish()
                return
            except RECOVERABLE as error:
                pause_s = exchange.failed(error)
            await asyncio.sleep(pause_s)


class AsyncStream:
    """``Stream`` with ``async for``: closing it, or leaving its context, ends the work on the server."""

    def __init__(self, exchange: Exchange, receiver: Resumed, pieces: AsyncGenerator[bytes, None]) -> None:
        self.request_id = exchange.request_id
        self._exchange, self._receiver, self._pieces = exchange, receiver, pieces

    @property
    def result(self) -> Result | None:
        """What the whole result says of itself; None before the iterator has ended."""
        return stream_result(self._exchange, self._receiver)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
