"""What is sent: inputs that can be sent again, as one multipart body that is read from disk piece by piece."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from lipsync.errors import LipsyncError
from lipsync.media.source import Blob
from lipsync.options import Options

LARGEST_INPUT_BYTES = 1 << 32
"""An input above this is refused here; what the server accepts is its own limit."""
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far a request is. ``attempt`` counts from 1; what was sent begins anew with each. ``failed`` says once what
    became of an attempt that another will follow.
    """

    sent_bytes: int
    total_bytes: int
    received_bytes: int
    attempt: int
    failed: LipsyncError | None = None


OnTransfer: TypeAlias = Callable[[Transfer], None]


class Upload:
    """A multipart body: one part ``options`` where any differ from their defaults, then a file part per input.

    Iterating reads the inputs from their start, each time anew. Raises UnreadableMedia where a file has changed since.
    """

    def __init__(self, inputs: dict[str, Blob], options: Options | None) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._parts: list[bytes | Blob] = []
        changed = (options or Options()).to_json()
        if changed != "{}":
            self._parts.append(_head(boundary, "options", "", "application/json") + changed.encode() + b"\r\n")
        for name, blob in inputs.items():
            # the content decides, and a file's name is nobody else's business
            file_name = f'; filename="{name}"'
            self._parts += [_head(boundary, name, file_name, "application/octet-stream"), blob, b"\r\n"]
        self._parts.append(f"--{boundary}--\r\n".encode())
        self.byte_count = sum(part.byte_count if isinstance(part, Blob) else len(part) for part in self._parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            with part.open() as reader:
                while data := reader.read(_BLOCK):
                    yield data


class Metered(httpx.SyncByteStream, httpx.AsyncByteStream):
    """One sending of an upload, for both kinds of client; tells ``sent`` how many bytes have been handed over."""

    def __init__(self, upload: Upload, sent: Callable[[int], None]) -> None:
        self._upload = upload
        self._sent = sent
        self._count = 0

    def __iter__(self) -> Iterator[bytes]:
        for data in self._upload:
            yield data
            self._add(len(data))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = iter(self._upload)
        # WHY: a disk may be slow, or far away; the event loop is not held up by it
        while data := await asyncio.to_thread(next, pieces, b""):
            yield data
            self._add(len(data))

    def _add(self, count: int) -> None:
        self._count += count
        self._sent(self._count)


def _head(boundary: str, name: str, file_name: str, content_type: str) -> bytes:
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file_name}\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    ).encode()
