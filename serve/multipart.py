"""A multipart body, read as it arrives: files to the spool, texts to memory, all within bounds from the first byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from lipsync.errors import InputTooLarge, MalformedRequest
from lipsync.media.sniff import HEAD_BYTES, SOUND, ContentType, sniff
from lipsync.media.source import Blob
from lipsync.options import Limits

from .spool import SpoolFile, SpoolFolder

TEXT_BYTES = 4_000_000
"""Of all text parts together: boxes for every frame of the longest video need half a megabyte."""
_PARTS = 64
"""The parser bounds a part's headers and the boundary."""
_AROUND_BYTES = 65_536
"""Boundaries, headers, and whatever stands before the first part and after the last."""


@dataclass(slots=True)
class Form:
    """What was sent: texts by name, files by name."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Blob] = field(default_factory=dict)


def most_bytes(files: Mapping[str, int]) -> int:
    """The largest body that is read where file parts may have so many bytes each."""
    return sum(files.values()) + TEXT_BYTES + _AROUND_BYTES


async def receive(
    body: AsyncIterator[bytes],
    content_type: str | None,
    folder: SpoolFolder,
    *,
    files: Mapping[str, int],
    texts: Collection[str],
    limits: Limits,
) -> Form:
    """Read a multipart/form-data body. ``files`` names the file parts and the most bytes of each, ``texts`` the others;
    a file that begins as an image or as sound alone may have that kind's bytes of ``limits`` at most.

    Raises MalformedRequest, InputTooLarge while reading, UnsupportedMedia and UnreadableMedia once a file's first bytes
    are here, Overloaded where the spool is full.
    """
    form = _Receiver(folder, files, texts, limits)
    left_bytes = most_bytes(files)
    try:
        parser = MultipartParser(_boundary(content_type), form.callbacks())
        async for data in body:
            left_bytes -= len(data)
            if left_bytes < 0:  # also what the parser skips: before the first part and after the last
                raise InputTooLarge(f"The request has more than {most_bytes(files):,} bytes. Send smaller files.")
            parser.write(data)
            if form.error is not None:
                raise form.error
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest(f"The body is not multipart/form-data as its header says: {error}.") from error
    finally:
        form.close()
    return form.result()


def _boundary(content_type: str | None) -> bytes:
    message = Message()
    message["content-type"] = content_type or ""
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise MalformedRequest("Send the files as multipart/form-data, for example with curl -F face=@face.jpg.")
    return boundary.encode("latin-1", errors="replace")


class _Receiver:
    """The parser's callbacks. An error is kept and raised by the reader: the parser would hide where it came from."""

    def __init__(self, folder: SpoolFolder, files: Mapping[str, int], texts: Collection[str], limits: Limits) -> None:
        self._folder, self._most, self._known, self._limits = folder, files, texts, limits
        self._open: dict[str, SpoolFile] = {}
        self._texts: dict[str, bytearray] = {}
        self._text_bytes = self._parts = 0
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[str, str] = {}
        self._file: SpoolFile | None = None
        self._head = bytearray()
        self._text: bytearray | None = None
        self._has_ended = False
        self.error: Exception | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._guarded(self._begin),
            "on_header_field": self._guarded(self._on_field),
            "on_header_value": self._guarded(self._on_value),
            "on_header_end": self._guarded(self._on_header_end),
            "on_headers_finished": self._guarded(self._on_headers),
            "on_part_data": self._guarded(self._on_data),
            "on_part_end": self._guarded(self._on_part_end),
            "on_end": self._guarded(self._on_end),
        }

    def _guarded(self, work: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if self.error is None:
                try:
                    work(*arguments)
                except Exception as error:
                    self.error = error

        return call

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise MalformedRequest(f"The body has more than {_PARTS} parts.")
        self._headers = {}
        self._file = self._text = None

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", errors="replace")
        self._header.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        message = Message()
        message["content-disposition"] = self._headers.get("content-disposition", "")
        name = message.get_param("name", header="content-disposition")
        if message.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise MalformedRequest("A part has no name. Name each: face, audio, or an option.")
        if name in self._open or name in self._texts:
            raise MalformedRequest(f"The part {name[:60]!r} is there twice.")
        if name in self._most:
            self._head.clear()
            self._file = self._open[name] = self._folder.file(name, limit_bytes=self._most[name])
        elif name in self._known:
            self._text = self._texts[name] = bytearray()
        else:
            files = " and ".join(self._most)
            raise MalformedRequest(f"There is no part {name[:60]!r}: send {files}, and options by their names.")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._file is not None:
            self._sniff(self._file, piece)
            self._file.write(piece)
        elif self._text is not None:
            self._text_bytes += len(piece)
            if self._text_bytes > TEXT_BYTES:
                raise InputTooLarge(f"The options have more than {TEXT_BYTES:,} bytes.")
            self._text += piece

    def _sniff(self, file: SpoolFile, piece: bytes) -> None:
        """Refuse what is no media as soon as its first bytes are here. Opening it is the sandboxes' work."""
        if len(self._head) < HEAD_BYTES:
            self._head += piece[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                file.limit_bytes = min(file.limit_bytes, self._most_of(sniff(bytes(self._head))))

    def _most_of(self, content: ContentType) -> int:
        if content.kind == "image":
            return self._limits.image_bytes
        return self._limits.audio_bytes if content.name in SOUND else self._limits.video_bytes

    def _on_part_end(self) -> None:
        if self._file is not None:
            self._file.close()
            if 0 < self._file.byte_count < HEAD_BYTES:
                sniff(bytes(self._head))

    def _on_end(self) -> None:
        self._has_ended = True

    def close(self) -> None:
        for file in self._open.values():
            file.close()

    def result(self) -> Form:
        if self.error is not None:
            raise self.error
        if not self._has_ended:
            raise MalformedRequest("The body ends in the middle of a part. Send all of it.")
        texts = {}
        for name, data in self._texts.items():
            try:
                texts[name] = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise MalformedRequest(f"The part {name[:60]!r} is not UTF-8 text.") from error
        return Form(texts, {name: file.blob() for name, file in self._open.items()})
