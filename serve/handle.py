"""The served application from Python inside the cluster: the same three calls, comfortably.

from serve.handle import connect
video = connect().lipsync(face_bytes, voice_bytes, Options(crf=20))
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray import serve

from lipsync.core import Source
from lipsync.media.source import Blob
from lipsync.options import Options

from .faults import cause_of


class AppHandle:
    """Calls on the Ingress's handle. Files and results go by reference, so that any size works in both of Ray Serve's
    transports; errors are the library's own, without Ray's wrapping. Calls block; their ``async`` twins do not."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def lipsync(self, face: Source, audio: Source, options: Options | None = None) -> bytes:
        """The bytes of an mp4. Raises the library's errors."""
        with _plain_errors():
            found: bytes = self._call("lipsync").remote(_read(face), _read(audio), _named(options)).result()
            return found

    async def lipsync_async(self, face: Source, audio: Source, options: Options | None = None) -> bytes:
        """The same, awaited."""
        with _plain_errors():
            inputs = await asyncio.to_thread(lambda: (_read(face), _read(audio)))
            asked = self._call("lipsync").remote(*inputs, _named(options))
            try:
                found: bytes = await asked
            except asyncio.CancelledError:
                asked.cancel()
                raise
            return found

    def stream(self, face: Source, audio: Source, options: Options | None = None) -> Iterator[bytes]:
        """A fragmented mp4, piece by piece. Raises the library's errors."""
        pieces = self._call("stream", stream=True).remote(_read(face), _read(audio), _named(options))
        try:
            with _plain_errors():
                yield from pieces
        finally:
            pieces.cancel()

    async def stream_async(self, face: Source, audio: Source, options: Options | None = None) -> AsyncIterator[bytes]:
        """The same, awaited."""
        inputs = await asyncio.to_thread(lambda: (_read(face), _read(audio)))
        pieces = self._call("stream", stream=True).remote(*inputs, _named(options))
        try:
            with _plain_errors():
                async for data in pieces:
                    yield data
        finally:
            pieces.cancel()

    def faces(self, face: Source, options: Options | None = None) -> str:
        """The face's box in every source frame, as JSON. Raises the library's errors."""
        with _plain_errors():
            found: str = self._call("faces").remote(_read(face), _named(options)).result()
            return found

    def _call(self, name: str, *, stream: bool = False) -> Any:
        return self._handle.options(method_name=name, stream=stream, _by_reference=True)


def connect(application: str = "lipsync") -> AppHandle:
    """The application that runs in the cluster that this process has joined."""
    handle = serve.get_app_handle(application)
    # in the throughput-optimised transport a handle works in an event loop alone, unless told to bring its own
    if not handle.is_initialized:  # Ray hands out the same one again
        handle._init(_run_router_in_separate_loop=True)
    return AppHandle(handle)


class _plain_errors:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None and cause_of(error) is not error:
            raise cause_of(error) from None


def _read(source: Source) -> bytes:
    """Paths are the caller's own, and read here, whole: the application opens none. What is too much it says itself:
    its limits are its own."""
    with Blob.of(source, limit_bytes=sys.maxsize).open() as reader:
        return reader.read()


def _named(options: Options | None) -> dict[str, Any]:
    return {} if options is None else options.changed()
