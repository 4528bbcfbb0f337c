"""What some bytes are, by their first bytes alone: the file's name is never asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lipsync.errors import UnreadableMedia, UnsupportedMedia

HEAD_BYTES = 4096
"""How many bytes ``sniff`` likes to see."""


@dataclass(frozen=True, slots=True)
class ContentType:
    """A kind of content that is accepted: ``name`` is Pillow's format for images, FFmpeg's demuxer for containers."""

    kind: Literal["image", "container"]
    name: str


_DTS_MARKS = (b"\x7f\xfe\x80\x01", b"\xfe\x7f\x01\x80", b"\x1f\xff\xe8\x00", b"\xff\x1f\x00\xe8")
_PREFIXES: tuple[tuple[bytes, ContentType], ...] = (
    (b"\xff\xd8\xff", ContentType("image", "JPEG")),
    (b"\x89PNG\r\n\x1a\n", ContentType("image", "PNG")),
    (b"GIF87a", ContentType("image", "GIF")),
    (b"GIF89a", ContentType("image", "GIF")),
    (b"\x1a\x45\xdf\xa3", ContentType("container", "matroska")),
    (b"FLV\x01", ContentType("container", "flv")),
    (b"OggS", ContentType("container", "ogg")),
    (b"fLaC", ContentType("container", "flac")),
    (b"riff\x2e\x91\xcf\x11", ContentType("container", "w64")),
    (b"caff\x00\x01", ContentType("container", "caf")),
    (b"#!AMR", ContentType("container", "amr")),
    (b".snd", ContentType("container", "au")),
    (b"wvpk", ContentType("container", "wv")),
    (b"TTA1", ContentType("container", "tta")),
    (b"DTSHDHDR", ContentType("container", "dtshd")),
    *((mark, ContentType("container", "dts")) for mark in _DTS_MARKS),
    (b"\x00\x00\x01\xba", ContentType("container", "mpeg")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ContentType("container", "asf")),
)
SOUND = frozenset(
    {"wav", "w64", "flac", "caf", "amr", "aiff", "mp3", "aac", "au", "wv", "tta", "ac3", "eac3", "dts", "dtshd"}
)
"""Containers that hold sound alone; the others may hold a video."""
_RIFF = {
    b"WEBP": ContentType("image", "WEBP"),
    b"AVI ": ContentType("container", "avi"),
    b"AVIX": ContentType("container", "avi"),
    b"WAVE": ContentType("container", "wav"),
}
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (or an office document)"),
    (b"PK\x05\x06", "a zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF or raw camera image"),
    (b"MM\x00*", "a TIFF or raw camera image"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x01\xb3", "a raw MPEG video stream"),
    (b"\x00\x00\x00\x01", "a raw H.264 or H.265 stream without a container"),
    (b"\x00\x00\x01\x67", "a raw H.264 stream without a container"),
    (b"\x00\x00\x01\x40", "a raw H.265 stream without a container"),
    (b"\x06\x0e\x2b\x34", "an MXF file"),
    (b".RMF", "a RealMedia file"),
    (b".ra\xfd", "a RealAudio file"),
    (b"MAC ", "a Monkey's Audio file (ape)"),
    (b"MPCK", "a Musepack file"),
    (b"MP+", "a Musepack file"),
    (b"tBaK", "a TAK file"),
    (b"DSD ", "a DSD file (dsf)"),
    (b"FRM8", "a DSD file (dff)"),
    (b"#!SILK", "a SILK voice message"),
    (b"\x02#!SILK", "a SILK voice message"),
    (b"Creative Voice File", "a Creative Voice file (voc)"),
    (b"FWS", "a Flash animation (swf)"),
    (b"CWS", "a Flash animation (swf)"),
    (b"MThd", "a MIDI file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
)
_SCRIPTS = (
    ("#extm3u", "an HLS playlist (m3u8)"),
    ("#ext-x-", "an HLS playlist (m3u8)"),
    ("[playlist]", "a playlist (pls)"),
    ("ffconcat", "an ffconcat script"),
    ("file ", "a concat script"),
    ("v=0", "an SDP session description"),
    ("<mpd", "a DASH manifest (mpd)"),
    ("<smoothstreamingmedia", "a Smooth Streaming manifest"),
    ("<svg", "an SVG drawing"),
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<smil", "a SMIL playlist"),
    ("<asx", "an ASX playlist"),
    ("version https://git-lfs", "a Git LFS pointer instead of the file"),
    (";ffmetadata", "an FFmpeg metadata script"),
    ("webvtt", "WebVTT subtitles"),
)
_ACCEPTED = "Send mp4, mov, mkv, webm, avi, ts, mpg, wmv, jpg, png, webp, avif, heic, gif, wav, mp3, flac, ogg or m4a."


def sniff(head: bytes) -> ContentType:
    """The type of content that begins with ``head`` (4096 bytes are plenty).

    Raises UnsupportedMedia naming what was seen, UnreadableMedia where nothing is recognised.
    """
    found = _by_prefix(head) or _riff(head) or _iso(head) or _transport_stream(head) or _audio_frames(head)
    if found is not None:
        return found
    for prefix, label in _FOREIGN:
        if head.startswith(prefix):
            raise UnsupportedMedia(f"This is {label}, which is not accepted. {_ACCEPTED}")
    script = _script(head)
    if script is not None:
        raise UnsupportedMedia(f"This is {script}, not media. {_ACCEPTED}")
    raise UnreadableMedia(f"The content is of no known type (it begins with {head[:8].hex(' ')}). {_ACCEPTED}")


def _by_prefix(head: bytes) -> ContentType | None:
    return next((content for prefix, content in _PREFIXES if head.startswith(prefix)), None)


def _riff(head: bytes) -> ContentType | None:
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return _RIFF.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return ContentType("container", "aiff")
    return None


_FIRST_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof", b"sidx")


def _iso(head: bytes) -> ContentType | None:
    """ISO base media: an image by its brands, else a movie."""
    if head[4:8] in _FIRST_BOXES:
        return ContentType("container", "mov")
    if head[4:8] != b"ftyp":
        return None
    size = int.from_bytes(head[:4], "big")
    major, others = head[8:12], {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}
    if major == b"crx ":
        raise UnsupportedMedia(f"This is a raw camera image (CR3), which is not accepted. {_ACCEPTED}")
    if major in (b"avif", b"avis") or (major == b"mif1" and b"avif" in others):
        return ContentType("image", "AVIF")
    if major in (b"heic", b"heix", b"heim", b"heis", b"mif1"):
        return ContentType("image", "HEIF")
    return ContentType("container", "mov")


def transport_packets(head: bytes) -> tuple[int, int] | None:
    """Where an MPEG transport stream's first packet begins and how far the next one lies: 188, 192 or 204 bytes."""
    for first, step in ((0, 188), (4, 192), (0, 204)):
        marks = head[first : first + 4 * step : step]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return first, step
    return None


def _transport_stream(head: bytes) -> ContentType | None:
    return None if transport_packets(head) is None else ContentType("container", "mpegts")


def _audio_frames(head: bytes) -> ContentType | None:
    """MP3, ADTS and AC-3 have no file header: an ID3 tag, or the sync word of a first frame."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        after = head[size : size + 16]
        return _by_prefix(after) or _audio_frames(after) or ContentType("container", "mp3")
    if head[:2] == b"\x0b\x77" and len(head) > 5:
        return _ac3(head)
    if len(head) < 4 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0:
        return ContentType("container", "aac")
    is_layer_3_or_2 = head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08 and head[1] & 0x06 in (0x02, 0x04)
    if is_layer_3_or_2 and head[2] >> 4 not in (0, 15) and head[2] & 0x0C != 0x0C:
        return ContentType("container", "mp3")
    return None


def _ac3(head: bytes) -> ContentType | None:
    version = head[5] >> 3
    if version > 10:
        return ContentType("container", "eac3") if version <= 16 else None
    return ContentType("container", "ac3") if head[4] >> 6 != 3 and head[4] & 63 < 38 else None


def _script(head: bytes) -> str | None:
    """What a text is, or None where it is none."""
    text = _as_text(head)
    if text is None:
        return None
    lowered = text.lstrip("\ufeff \t\r\n").lower()
    for start, label in _SCRIPTS:
        if lowered.startswith(start):
            return label
    if lowered.startswith("<"):
        inner = next((label for start, label in _SCRIPTS if start.startswith("<") and start in lowered), None)
        return inner or "an XML document"
    return "a text file"


def _as_text(head: bytes) -> str | None:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = head.decode(encoding, errors="ignore")
    odd = sum(not (character.isprintable() or character in "\r\n\t\ufeff") for character in text)
    is_text = bool(text.strip()) and odd == 0 and len(text) * (2 if encoding == "utf-16" else 1) >= 0.5 * len(head)
    return text if is_text else None
