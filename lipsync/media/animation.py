"""Animated gif, webp, png and avif: how long each frame is shown, read from the file's blocks without decoding."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from lipsync.errors import LimitExceeded, TruncatedMedia
from lipsync.media.container import media_errors
from lipsync.media.sniff import ContentType
from lipsync.media.source import Blob
from lipsync.media.structure import Element, content_of, nested
from lipsync.options import Limits

_SHORTEST_MS, _INSTEAD_MS = 10, 100
"""Browsers show a frame that asks for 10 ms or less for 100 ms."""


def frame_durations_ms(blob: Blob, content: ContentType, limits: Limits) -> list[int]:
    """Milliseconds per frame; one entry where the image does not move. Raises UnreadableMedia, LimitExceeded."""
    read = {"GIF": _gif, "WEBP": _webp, "PNG": _apng, "AVIF": _avif}.get(content.name)
    if read is None:
        return [0]
    durations: list[int] = []
    with blob.open() as reader, media_errors("read the image's frames"):
        for duration in read(reader, blob.byte_count):
            durations.append(duration if duration > _SHORTEST_MS else _INSTEAD_MS)
            if len(durations) > limits.frames:
                raise LimitExceeded(f"The animation has more than {limits.frames} frames. Send a shorter one.")
    return durations or [0]


def _check_within(end: int, byte_count: int) -> None:
    if end > byte_count:
        raise TruncatedMedia("The image ends in the middle of its data: it was cut off. Send all of it.")


def _gif(reader: BinaryIO, byte_count: int) -> Iterator[int]:
    """GIF89a: a delay of 1/100 s in the graphic control before each image."""
    reader.seek(10)
    _skip_palette(reader, reader.read(1)[0], extra=2)
    delay = 0
    while (mark := reader.read(1)) not in (b"", b";"):
        if mark == b"!":
            label = reader.read(1)
            block = _sub_blocks(reader, byte_count)
            if label == b"\xf9" and len(block) >= 4:
                delay = 10 * struct.unpack_from("<H", block, 1)[0]
        elif mark == b",":
            _skip_palette(reader, reader.read(9)[8], extra=1)
            _sub_blocks(reader, byte_count)
            yield delay
            delay = 0
        elif mark != b"\0":  # a stray zero between blocks is common
            return


def _skip_palette(reader: BinaryIO, flags: int, *, extra: int) -> None:
    reader.seek((3 << (flags & 7) + 1 if flags & 0x80 else 0) + extra, 1)


def _sub_blocks(reader: BinaryIO, byte_count: int) -> bytes:
    """The first sub-block of a chain; the rest is passed over."""
    first = b""
    while size := reader.read(1):
        data = reader.read(size[0])
        first = first or data
        if size == b"\0":
            return first
        _check_within(reader.tell() - len(data) + size[0], byte_count)
    _check_within(byte_count + 1, byte_count)
    return first


def _webp(reader: BinaryIO, byte_count: int) -> Iterator[int]:
    """A RIFF of chunks; each ANMF chunk is a frame with 24 bits of milliseconds."""
    reader.seek(12)
    while len(head := reader.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"ANMF":
            data = reader.read(16)
            yield int.from_bytes(data[12:15], "little")
            size -= len(data)
        reader.seek(size + (size & 1), 1)


def _apng(reader: BinaryIO, byte_count: int) -> Iterator[int]:
    """PNG chunks; each fcTL is a frame, shown for delay_num / delay_den seconds."""
    reader.seek(8)
    while len(head := reader.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            return
        _check_within(reader.tell() + size + 4, byte_count)
        if name == b"fcTL":
            data = reader.read(26)
            numerator, denominator = struct.unpack_from(">HH", data, 20)
            yield round(1000 * numerator / (denominator or 100))
            size -= 26
        reader.seek(size + 4, 1)


def _avif(reader: BinaryIO, byte_count: int) -> Iterator[int]:
    """ISO boxes; the time-to-sample table of the picture track says how many frames in a row last how many ticks."""
    reader.seek(8)
    if reader.read(4) != b"avis":
        return  # may have a track too, but is shown as the still that it begins with
    for track in nested(reader, byte_count, b"moov", b"trak"):
        media = {
            name[-1]: box
            for name in ((b"mdia", b"mdhd"), (b"mdia", b"hdlr"), (b"mdia", b"minf", b"stbl", b"stts"))
            for box in nested(reader, min(track.end, byte_count), *name, start=track.start)
        }
        if len(media) == 3 and content_of(reader, media[b"hdlr"], 12)[8:] == b"pict":  # another one holds alpha
            header = content_of(reader, media[b"mdhd"], 24)
            ticks_per_s = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)[0]
            yield from _sample_durations(reader, media[b"stts"], ticks_per_s)
            return


def _sample_durations(reader: BinaryIO, table: Element, ticks_per_s: int) -> Iterator[int]:
    """Milliseconds, rounded so that their sums do not drift."""
    entry_count, at = struct.unpack(">I", content_of(reader, table, 8)[4:])[0], 0
    for _ in range(min(entry_count, (table.end - table.start) // 8)):
        count, ticks = struct.unpack(">II", reader.read(8))
        for _ in range(count):
            yield round(1000 * (at + ticks) / ticks_per_s) - round(1000 * at / ticks_per_s)
            at += ticks
