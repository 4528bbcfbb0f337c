"""Whether a stream that declares no length ends in the middle of a piece: a packet, page, block, element or frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from lipsync.media.sniff import HEAD_BYTES, ContentType, transport_packets
from lipsync.media.source import Blob

_LONGEST_PAGE = 27 + 255 + 255 * 255
_MOST_ELEMENTS = 300_000
"""An hour and more of a live recording; reading on would take longer than a second."""


def torn_piece(blob: Blob, content: ContentType) -> str | None:
    """What the file ends in the middle of: "packet", "page", "block", "element" or "frame".

    None where it ends with a piece, where tags or padding follow the last one, or where that cannot be told. Headers
    are read, or the last few hundred kilobytes, however large the file.
    """
    with blob.open() as reader:
        if content.name == "mpegts":
            return _torn_packet(reader, blob.byte_count)
        if content.name == "ogg":
            return _torn_page(reader, blob.byte_count)
        if content.name == "matroska":
            return _torn_element(reader, blob.byte_count)
        if content.name == "wv":
            return _torn_block(reader, blob.byte_count)
        header_of = _FRAME_HEADERS.get(content.name)
        return None if header_of is None else _torn_frame(reader, blob.byte_count, header_of)


def _tail(reader: BinaryIO, byte_count: int, most: int) -> bytes:
    reader.seek(max(0, byte_count - most))
    return reader.read(most)


# ---------------------------------------------------------------- MPEG transport stream


def _torn_packet(reader: BinaryIO, byte_count: int) -> str | None:
    packets = transport_packets(reader.read(HEAD_BYTES))
    if packets is None:
        return None
    _, step = packets
    tail = _tail(reader, byte_count, 16 * step)
    # not from the file's first packet on: where recordings were joined, the steps may have shifted
    begins = [first for first in range(step) if set(tail[first::step]) == {0x47}]
    if len(begins) != 1:
        return None
    after = (len(tail) - begins[0]) % step or step
    return "packet" if after < 188 else None


# ---------------------------------------------------------------- Ogg


class _Page(NamedTuple):
    end: int
    is_continued: bool
    """Its last packet goes on in a page to come."""


def _torn_page(reader: BinaryIO, byte_count: int) -> str | None:
    """Walks the last pages. A last page without the end-of-stream flag is no cut: live recorders do not set it."""
    data = _tail(reader, byte_count, 4 * _LONGEST_PAGE)
    at, is_sure = data.find(b"OggS"), data.startswith(b"OggS") and len(data) == byte_count
    while at >= 0:
        page = _page_at(data, at)
        if page is not None and page.end > len(data) and is_sure:
            return "page"
        if page is None or page.end > len(data):  # four letters within a packet
            at, is_sure = data.find(b"OggS", at + 1), False
            continue
        rest = data[page.end : page.end + 4]
        if rest == b"OggS":
            at, is_sure = page.end, True
        elif b"OggS".startswith(rest) and is_sure:
            return "page" if rest or page.is_continued else None
        else:
            at, is_sure = data.find(b"OggS", at + 1), False
    return None


def _page_at(data: bytes, at: int) -> _Page | None:
    """The page that begins there, None where none does; one whose header is not all there ends beyond the data."""
    head = data[at : at + 27]
    if any(head[4:5]) or any(byte > 7 for byte in head[5:6]):
        return None
    lacing = data[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
    if len(head) < 27 or len(lacing) < head[26]:
        return _Page(len(data) + 1, False)
    is_continued = lacing.endswith(b"\xff") and not head[5] & 4
    return _Page(at + 27 + len(lacing) + sum(lacing), is_continued)


# ---------------------------------------------------------------- Matroska of unknown size

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_HEADS = "1a45dfa3 114d9b74 1549a966 1654ae6b 1043a770 1c53bb6b 1941a469 1254c367"
_WITHIN_CLUSTERS = "e7 5854 a7 ab a3 a0 af ec bf"
_ELEMENTS = frozenset({_SEGMENT, _CLUSTER, *map(bytes.fromhex, f"{_HEADS} {_WITHIN_CLUSTERS}".split())})


def _torn_element(reader: BinaryIO, byte_count: int) -> str | None:
    """Walks a live recording's elements, stepping into segments and clusters of unknown size."""
    at = 0
    for _ in range(_MOST_ELEMENTS):
        reader.seek(at)
        head = reader.read(12)
        name = next((head[:n] for n in (1, 2, 4) if head[:n] in _ELEMENTS), None)
        if name is None:
            begins = len(head) > 1 and any(known.startswith(head) for known in _ELEMENTS)
            return "element" if begins else None
        size = head[len(name) :]
        length = 9 - size[0].bit_length() if size else 1
        if len(size) < length:
            return "element"
        if length > 8:
            return None
        count = int.from_bytes(size[:length], "big") & ((1 << 7 * length) - 1)
        is_unknown = count == (1 << 7 * length) - 1
        if name == _SEGMENT and not is_unknown:
            return None  # its size tells more
        at += len(name) + length
        if not (is_unknown and name in (_SEGMENT, _CLUSTER)):
            at += count
        if at >= byte_count:
            return "element" if at > byte_count else None
    return None


# ---------------------------------------------------------------- WavPack


def _torn_block(reader: BinaryIO, byte_count: int) -> str | None:
    at = 0
    for _ in range(_MOST_ELEMENTS):
        reader.seek(at)
        head = reader.read(8)
        if head[:4] != b"wvpk":
            return "block" if len(head) > 1 and b"wvpk".startswith(head) else None
        at += 8 + int.from_bytes(head[4:], "little")
        if len(head) < 8 or at > byte_count:
            return "block"
    return None


# ---------------------------------------------------------------- frames one after the other


class _Frame(NamedTuple):
    kind: tuple[int, ...]
    """What does not change from frame to frame."""
    length: int


_HeaderOf = Callable[[bytes], _Frame | None]
_SURE = 4
"""So many frames of one kind, each beginning where the one before ends, are no accident."""
_SHORT = 4
"""Encoders that count a last frame's padding wrongly leave out so many bytes at most."""


def _torn_frame(reader: BinaryIO, byte_count: int, header_of: _HeaderOf) -> str | None:
    data = _tail(reader, byte_count, 1 << 16)
    if _ends_with_tag(data):
        return None
    at, run, sync = 0, 0, b""
    kind: tuple[int, ...] = ()
    while at < len(data):
        head = data[at : at + 8]
        frame = header_of(head)
        if frame is None and run >= _SURE and 2 <= len(head) < 8 and head[:2] == sync:
            return "frame"
        if frame is None:
            at, run = at + 1, 0
            continue
        run = run + 1 if frame.kind == kind else 1
        missing = at + frame.length - len(data)
        if missing > 0 and run > _SURE:
            return "frame" if missing > _SHORT else None
        kind, sync = frame.kind, head[:2]
        at, run = (at + 1, 0) if missing > 0 else (at + frame.length, run)
    return None


def _ends_with_tag(data: bytes) -> bool:
    """ID3v1, APE, Lyrics3 or ID3v2 behind the sound: whoever wrote them had all of it."""
    return (
        data[-128:-125] == b"TAG"
        or data[-32:-24] == b"APETAGEX"
        or data.endswith((b"LYRICS200", b"LYRICSEND"))
        or data[-10:-7] == b"3DI"
    )


def _adts(head: bytes) -> _Frame | None:
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return _Frame((head[1] & 8, head[2], head[3] & 0xC0), length) if length >= 7 else None


_KBPS = {
    (3, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (2, 0): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mpeg_audio(head: bytes) -> _Frame | None:
    """MPEG-1, 2 and 2.5, layers 2 and 3; a frame in free format does not tell its length."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate, row = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer not in (2, 3) or not 1 <= rate <= 14 or row == 3:
        return None
    kbps = _KBPS[(3, layer) if version == 3 else (2, 0)][rate - 1]
    rate_hz = _RATES_HZ[version][row]
    slots = 72 if layer == 3 and version != 3 else 144
    return _Frame((version, layer, row), slots * kbps * 1000 // rate_hz + (head[2] >> 1 & 1))


_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


def _ac3(head: bytes) -> _Frame | None:
    """AC-3 and E-AC-3."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return None
    clock, version = head[4] >> 6, head[5] >> 3
    if version > 10:
        return _Frame((version,), 2 * (((head[2] & 7) << 8 | head[3]) + 1)) if version <= 16 else None
    code = head[4] & 63
    if clock == 3 or code >= 2 * len(_AC3_KBPS):
        return None
    kbps = _AC3_KBPS[code >> 1]
    return _Frame((version, clock), (4 * kbps, 2 * (320 * kbps // 147 + (code & 1)), 6 * kbps)[clock])


_FRAME_HEADERS: dict[str, _HeaderOf] = {"aac": _adts, "mp3": _mpeg_audio, "ac3": _ac3, "eac3": _ac3}
