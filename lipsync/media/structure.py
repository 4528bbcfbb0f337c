"""What a container's own bookkeeping says, read without a demuxer: is all of it there, and which way is up."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, NamedTuple

from lipsync.errors import TruncatedMedia
from lipsync.media.sniff import ContentType
from lipsync.media.source import Blob
from lipsync.media.torn import torn_piece

Rotation = Literal[0, 90, 180, 270]


class Orientation(NamedTuple):
    """What brings a coded picture upright: first a flip left to right, then a clockwise turn in degrees."""

    rotation_deg: Rotation = 0
    is_mirrored: bool = False


_TOP_BOX_NAMES = b"ftyp moov mdat free skip wide moof mfra sidx styp uuid meta emsg prft ssix pdin pnot idat"
_TOP_BOXES = frozenset(_TOP_BOX_NAMES.split())
_STREAMED = 0x7FFFF000
"""RIFF sizes from here on (and 0) are placeholders of programs that wrote to a pipe."""
_MOST_ELEMENTS = 100_000


class Element(NamedTuple):
    """A box, chunk or EBML element: its name, and where its content begins and ends (``end`` may pass the file's)."""

    name: bytes
    start: int
    end: int


def check_whole(blob: Blob, content: ContentType) -> None:
    """Raises TruncatedMedia where the container's own sizes, or a piece that was begun, pass the end of the file."""
    torn = torn_piece(blob, content)
    if torn is not None:
        raise TruncatedMedia(f"The file ends in the middle of its last {torn}: it was cut off. Send all of it.")
    check = _ENDS.get(content.name)
    if check is None:
        return
    with blob.open() as reader:
        declared = check(reader, blob.byte_count)
    if declared > blob.byte_count:
        raise TruncatedMedia(
            f"The file declares {declared:,} bytes but holds {blob.byte_count:,}: it was cut off. Send all of it."
        )


def orientation_of(blob: Blob, content: ContentType, track: int) -> Orientation:
    """What the container's tags ask of a player for the ``track``-th track (an id)."""
    with blob.open() as reader:
        if content.name == "mov":
            return _mov_orientation(reader, blob.byte_count, track)
        if content.name == "matroska":
            return Orientation(_matroska_rotation(reader, blob.byte_count))
    return Orientation()


# ---------------------------------------------------------------- ISO base media


def boxes(reader: BinaryIO, start: int, stop: int) -> Iterator[Element]:
    """The boxes that lie one after the other between ``start`` and ``stop``."""
    at = start
    for _ in range(_MOST_ELEMENTS):
        reader.seek(at)
        head = reader.read(16)
        if len(head) < 8 or at + 8 > stop:
            return
        size, name = struct.unpack_from(">I4s", head)
        begin = at + 8
        if size == 1 and len(head) == 16:
            size, begin = struct.unpack_from(">Q", head, 8)[0], at + 16
        end = stop if size == 0 else at + size
        if end < begin:
            return
        yield Element(name, begin, end)
        at = end


def nested(reader: BinaryIO, stop: int, *names: bytes, start: int = 0) -> Iterator[Element]:
    """The boxes that lie in one another by these names, from ``start`` on: all of the last name."""
    for box in boxes(reader, start, stop):
        if box.name == names[0] and len(names) == 1:
            yield box
        elif box.name == names[0]:
            yield from nested(reader, min(box.end, stop), *names[1:], start=box.start)


def content_of(reader: BinaryIO, box: Element, most: int) -> bytes:
    """What the box holds, at most that many bytes of it, and what is there of it where the file was cut."""
    reader.seek(box.start)
    return reader.read(min(box.end - box.start, most))


def _iso_end(reader: BinaryIO, byte_count: int) -> int:
    # what follows the last known box (a zip, some padding) is not ours to judge
    known = [box for box in boxes(reader, 0, byte_count) if box.name in _TOP_BOXES]
    indexed = [_indexed_end(reader, box) for box in known if box.name == b"sidx"]
    return max([*(box.end for box in known), *indexed], default=0)


def _indexed_end(reader: BinaryIO, sidx: Element) -> int:
    """Where the last of the fragments ends that a segment index lists, 0 where the index itself is not all there."""
    data = content_of(reader, sidx, 32 + 12 * 0xFFFF)
    sizes_at = 24 if data[:1] == b"\x00" else 32
    if len(data) < sizes_at:
        return 0
    first = int.from_bytes(data[16:20] if sizes_at == 24 else data[20:28], "big")
    count = int.from_bytes(data[sizes_at - 2 : sizes_at], "big")
    references = data[sizes_at : sizes_at + 12 * count]
    if len(references) < 12 * count:
        return 0
    sizes = (int.from_bytes(references[at : at + 4], "big") & 0x7FFFFFFF for at in range(0, len(references), 12))
    return sidx.end + first + sum(sizes)


def fragments_duration_s(blob: Blob) -> float:
    """Seconds of a fragmented mp4's longest track with all its fragments (mehd); 0 where it does not say."""
    with blob.open() as reader:
        header, extends = (
            next((content_of(reader, box, 32) for box in nested(reader, blob.byte_count, b"moov", *path)), b"")
            for path in ((b"mvhd",), (b"mvex", b"mehd"))
        )
    scale_at = 20 if header[:1] == b"\x01" else 12
    ticks_end = 12 if extends[:1] == b"\x01" else 8
    per_second = int.from_bytes(header[scale_at : scale_at + 4], "big")
    return int.from_bytes(extends[4:ticks_end], "big") / per_second if per_second else 0.0


def _mov_orientation(reader: BinaryIO, byte_count: int, track: int) -> Orientation:
    for box in nested(reader, byte_count, b"moov", b"trak", b"tkhd"):
        number, orientation = _track_header(content_of(reader, box, 104))
        if number == track:
            return orientation
    return Orientation()


def _track_header(data: bytes) -> tuple[int, Orientation]:
    """Track id and orientation of a tkhd box; the matrix maps the coded picture to the shown one."""
    is_long = data[:1] == b"\x01"
    id_at, matrix_at = (20, 52) if is_long else (12, 40)
    if len(data) < matrix_at + 36:
        return -1, Orientation()
    number = struct.unpack_from(">I", data, id_at)[0]
    a, b, _, c, d = struct.unpack_from(">5i", data, matrix_at)
    is_mirrored = a * d - b * c < 0
    if is_mirrored:  # what is left to do once the flip has turned x around
        a, b = -a, -b
    if a == 0 and d == 0 and b != 0 and c != 0:
        return number, Orientation(90 if b > 0 else 270, is_mirrored)
    return number, Orientation(180 if a < 0 and d < 0 else 0, is_mirrored)


# ---------------------------------------------------------------- RIFF and AIFF


def _riff_end(reader: BinaryIO, byte_count: int) -> int:
    """Where the last RIFF chunk says that it ends; AVI files above 1 GiB have several."""
    at = end = 0
    while at + 12 <= byte_count:
        reader.seek(at)
        name, size = struct.unpack("<4sI", reader.read(8))
        if name != b"RIFF" or not 0 < size < _STREAMED:
            break
        end = at + 8 + size
        at = end + (end & 1)
    return end


def _wave_end(reader: BinaryIO, byte_count: int) -> int:
    """Where the samples say that they end; the outer size is often wrong and nothing depends on it."""
    at, long_size = 12, None
    for _ in range(_MOST_ELEMENTS):
        reader.seek(at)
        head = reader.read(8)
        if len(head) < 8:
            break
        name, size = struct.unpack("<4sI", head)
        if name == b"ds64":
            body = reader.read(16)
            long_size = struct.unpack_from("<Q", body, 8)[0] if len(body) == 16 else None
        if name == b"data":
            if size == 0xFFFFFFFF and long_size:
                size = long_size
            elif not 0 < size < _STREAMED:
                return 0
            return at + 8 + int(size)
        at += 8 + size + (size & 1)
    return 0


def _aiff_end(reader: BinaryIO, byte_count: int) -> int:
    size = struct.unpack(">4sI", reader.read(8))[1]
    return int(size) + 8 if 0 < size < _STREAMED else 0


def _au_end(reader: BinaryIO, byte_count: int) -> int:
    _, start, size = struct.unpack(">4sII", reader.read(12).ljust(12, b"\x00"))
    return int(start + size) if 0 < size < _STREAMED else 0


# ---------------------------------------------------------------- TTA and ASF


def _tta_end(reader: BinaryIO, byte_count: int) -> int:
    """Where the last of the frames ends that the table behind the header lists."""
    head = reader.read(22)
    if len(head) < 22 or head[:4] != b"TTA1":  # a tag comes first
        return 0
    rate_hz, samples = struct.unpack_from("<II", head, 10)
    count = -(-samples * 245 // (rate_hz * 256)) if rate_hz else 0
    if 22 + 4 * count > byte_count:
        return 22 + 4 * count
    table = reader.read(4 * count)
    sizes = (int.from_bytes(table[at : at + 4], "little") for at in range(0, len(table), 4))
    return 22 + len(table) + 4 + sum(sizes)


_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA_HEAD = 50
"""The size of the data object without data, which a live recording declares."""


def _asf_end(reader: BinaryIO, byte_count: int) -> int:
    """Where the data object ends, which comes after the header object."""
    at = 0
    for name in (_ASF_HEADER, _ASF_DATA):
        reader.seek(at)
        head = reader.read(24)
        size = int.from_bytes(head[16:], "little")
        if head[:16] != name or len(head) < 24 or size >> 62:
            return 0
        if name == _ASF_DATA and size <= _ASF_DATA_HEAD:
            return 0
        at += size
        if at > byte_count:
            break
    return at


# ---------------------------------------------------------------- Matroska

_SEGMENT, _TRACKS, _TRACK, _VIDEO = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
_PROJECTION, _POSE_ROLL = b"\x76\x70", b"\x76\x75"


def elements(reader: BinaryIO, start: int, stop: int) -> Iterator[Element]:
    """The EBML elements between ``start`` and ``stop``; one of unknown size reaches to ``stop``."""
    at = start
    for _ in range(_MOST_ELEMENTS):
        reader.seek(at)
        head = reader.read(12)
        if at >= stop or len(head) < 2 or head[0] == 0:
            return
        id_length = 9 - head[0].bit_length()
        if id_length > 4 or len(head) <= id_length or head[id_length] == 0:
            return
        length = 9 - head[id_length].bit_length()
        size = int.from_bytes(head[id_length : id_length + length], "big") & ((1 << 7 * length) - 1)
        begin = at + id_length + length
        end = stop if size == (1 << 7 * length) - 1 else begin + size
        yield Element(head[:id_length], begin, end)
        at = end


def _matroska_end(reader: BinaryIO, byte_count: int) -> int:
    return max((item.end for item in elements(reader, 0, byte_count) if item.name == _SEGMENT), default=0)


def _matroska_rotation(reader: BinaryIO, byte_count: int) -> Rotation:
    """From the first video track that has a projection: its roll is counter-clockwise."""
    spans = [Element(b"", 0, byte_count)]
    for name in (_SEGMENT, _TRACKS, _TRACK, _VIDEO, _PROJECTION, _POSE_ROLL):
        spans = [
            item
            for span in spans
            for item in elements(reader, span.start, min(span.end, byte_count))
            if item.name == name
        ]
    for span in spans:
        reader.seek(span.start)
        data = reader.read(min(span.end - span.start, 8))
        if len(data) in (4, 8):
            roll = struct.unpack(">f" if len(data) == 4 else ">d", data)[0]
            return _quarter_turns(-roll)
    return 0


def _quarter_turns(degrees: float) -> Rotation:
    turned: dict[int, Rotation] = {0: 0, 1: 90, 2: 180, 3: 270}
    return turned[round(degrees / 90) % 4] if abs(degrees) <= 360 else 0


_ENDS: dict[str, Callable[[BinaryIO, int], int]] = {
    **dict.fromkeys(("mov", "AVIF", "HEIF"), _iso_end),
    **dict.fromkeys(("avi", "WEBP"), _riff_end),
    "wav": _wave_end,
    "aiff": _aiff_end,
    "au": _au_end,
    "tta": _tta_end,
    "asf": _asf_end,
    "matroska": _matroska_end,
}
"""Where a container's own sizes say that it ends, 0 where they do not."""
