"""The client for callers without an event loop."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
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


class Client:
    """Calls the application at ``url``. Close it, or use it as a context manager; threads may share it.

    ``timeout_s`` bounds each call with all its attempts, a stream's consumer included; None is no bound. It is looked
    at whenever bytes move: a server that falls silent late is noticed at most ``timeout_s`` after that attempt began.
    Every call raises the errors of ``lipsync.errors``, those of the application by their slugs; a server that cannot be
    reached is a ServiceError.
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
        self._http = httpx.Client(base_url=url, headers=self._calls.headers)

    def lipsync(
        self,
        face: Source,
        audio: Source,
        *,
        output_path: str | os.PathLike[str] | None = None,
        options: Options | None = None,
        progress: OnTransfer | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Make the face speak the voice: a progressive mp4 in ``Result.data``, or whole at ``output_path``.

        ``face`` and ``audio`` are paths, bytes or binary file objects (read to their end, into memory). ``progress``
        is told of every piece that is sent or received.
        """
        with result_receiver(output_path) as receiver:
            exchange = self._calls.lipsync(
                face, audio, receiver=receiver, options=options, progress=progress, request_id=request_id
            )
            self._run(exchange)
            return whole_result(exchange, receiver)

    def stream(
        self,
        face: Source,
        audio: Source,
        *,
        options: Options | None = None,
        progress: OnTransfer | None = None,
        request_id: str | None = None,
    ) -> Stream:
        """The same as a fragmented mp4 while it is made. An iterator that ends without an error has been whole."""
        receiver = Resumed()
        exchange = self._calls.lipsync(
            face, audio, receiver=receiver, options=options, progress=progress, request_id=request_id
        )
        return Stream(exchange, receiver, self._pieces(exchange))

    def faces(self, face: Source, *, options: Options | None = None, progress: OnTransfer | None = None) -> GivenBoxes:
        """The face's box in each source frame: ``boxes`` and, as ``boxes_size``, ``(width, height)`` are options."""
        receiver = json_receiver()
        self._run(self._calls.faces(face, receiver=receiver, options=options, progress=progress))
        return boxes(receiver)

    def models(self) -> Any:
        """The JSON document of ``/v1/models``: what draws: checkpoint, device, precision."""
        return self._document("v1/models")

    def limits(self) -> Any:
        """The JSON document of ``/v1/limits``: what an input may be at most."""
        return self._document("v1/limits")

    def is_ready(self) -> bool:
        """Whether a request would be accepted now. One attempt; a server that cannot be reached is not ready."""
        try:
            return self._http.get("readyz", timeout=READY_TIMEOUT_S).status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _document(self, path: str) -> Any:
        receiver = json_receiver()
        self._run(self._calls.get(path, receiver=receiver))
        return document(receiver)

    def _run(self, exchange: Exchange) -> None:
        for _ in self._pieces(exchange):
            pass  # the receiver has kept them

    def _pieces(self, exchange: Exchange) -> Generator[bytes, None, None]:
        while True:
            try:
                with closing(self._http.send(exchange.next_request(self._http), stream=True)) as response:
                    exchange.begin(response)
                    for data in response.iter_bytes():
                        if media := exchange.feed(data):
                            yield media
                exchange.finish()
                return
            except RECOVERABLE as error:
                pause_s = exchange.failed(error)
            time.sleep(pause_s)


class Stream:
    """An iterator over a result's bytes. Closing it, or leaving its context, ends the work on the server."""

    def __init__(self, exchange: Exchange, receiver: Resumed, pieces: Generator[bytes, None, None]) -> None:
        self.request_id = exchange.request_id
        self._exchange, self._receiver, self._pieces = exchange, receiver, pieces

    @property
    def result(self) -> Result | None:
        """What the whole result says of itself; None before the iterator has ended."""
        return stream_result(self._exchange, self._receiver)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
