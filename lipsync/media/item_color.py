"""Whether an AVIF's or HEIC's picture is tagged as one of high dynamic range: its primary item's own colour box."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from lipsync.core import Transfer
from lipsync.media.container import media_errors
from lipsync.media.source import Blob
from lipsync.media.structure import Element, boxes, content_of, nested

_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}  # H.273
_LARGEST_TABLE = 1 << 20


def transfer_of(blob: Blob, format: str) -> Transfer:
    """The transfer that the shown item's ``colr`` box names; other items (thumbnails, gain maps) have their own.

    Raises UnreadableMedia.
    """
    if format not in ("AVIF", "HEIF"):
        return "sdr"
    with blob.open() as reader, media_errors(f"read the {format} image's colour"):
        for meta in nested(reader, blob.byte_count, b"meta"):
            for box in _properties(reader, meta.start + 4, min(meta.end, blob.byte_count)):
                data = content_of(reader, box, _LARGEST_TABLE)
                if box.name == b"colr" and data[:4] == b"nclx":
                    return _TRANSFERS.get(struct.unpack_from(">H", data, 6)[0], "sdr")
    return "sdr"


def _properties(reader: BinaryIO, start: int, stop: int) -> Iterator[Element]:
    """The properties of the primary item of the ``meta`` box that lies between ``start`` and ``stop``."""
    wanted = [
        _primary_item(content_of(reader, box, _LARGEST_TABLE)) for box in nested(reader, stop, b"pitm", start=start)
    ]
    for holder in nested(reader, stop, b"iprp", start=start):
        end = min(holder.end, stop)
        known = [
            prop
            for container in nested(reader, end, b"ipco", start=holder.start)
            for prop in boxes(reader, container.start, min(container.end, end))
        ]
        for table in nested(reader, end, b"ipma", start=holder.start):
            for item, number in _associations(content_of(reader, table, _LARGEST_TABLE)):
                if item in wanted and 1 <= number <= len(known):
                    yield known[number - 1]


def _primary_item(data: bytes) -> int:
    return int(struct.unpack_from(">I" if data[0] else ">H", data, 4)[0])


def _associations(data: bytes) -> Iterator[tuple[int, int]]:
    """(item, number of a property, from 1) as an ``ipma`` box lists them."""
    item_form, number_form = ">I" if data[0] else ">H", ">H" if data[3] & 1 else ">B"
    at = 8
    for _ in range(struct.unpack_from(">I", data, 4)[0]):
        item = struct.unpack_from(item_form, data, at)[0]
        at += struct.calcsize(item_form)
        count, at = data[at], at + 1
        for _ in range(count):
            number = struct.unpack_from(number_form, data, at)[0]
            at += struct.calcsize(number_form)
            yield item, number & (0x7FFF if number_form == ">H" else 0x7F)  # without the mark "essential"
