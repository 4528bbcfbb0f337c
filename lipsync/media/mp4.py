"""Fragments joined to one stream, and a stream remuxed to a progressive mp4, without encoding anything again.

The AAC encoder's first packet lies before time 0. A fragment's clock is unsigned, so the stream begins with the packet
at 0 instead: every decoder is then exactly in time, with or without edit lists, and only the first 1024 samples fade
in because they lack their predecessor. The progressive file has the packet and an edit list, and loses nothing: the
packet travels in a ``uuid`` box after the stream's header, which players skip.
"""

from __future__ import annotations

import math
import os
import secrets
import struct
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.container

from lipsync.core import AudioFormat, AudioPacket
from lipsync.errors import OutputError

SYNTHETIC = "AI-generated: lip-synced by lipsync-serve"
"""What every output says of itself, as the comment in its metadata."""

_PRIMING_BOX = uuid.UUID("a6a0f9e5-4f0c-4f5c-9c5e-6c697073796e").bytes
_PRIMING_ENTRY = struct.Struct(">qII")  # pts, duration, bytes


def packets_between(
    packets: Sequence[AudioPacket], audio_format: AudioFormat, *, until: Fraction | None
) -> tuple[list[AudioPacket], list[AudioPacket]]:
    """The leading packets that begin before ``until`` seconds, and the rest; all of them with None.

    Called with the end of each segment in turn, and None for the last, every packet is handed out once, in order, the
    priming first.
    """
    if until is None:
        return list(packets), []
    stop = math.ceil(until * audio_format.sample_rate_hz)
    count = next((number for number, packet in enumerate(packets) if packet.pts >= stop), len(packets))
    return list(packets[:count]), list(packets[count:])


class FragmentJoiner:
    """Turns the mp4s of consecutive segments into one fragmented mp4, piece by piece."""

    def __init__(self) -> None:
        self._moov: bytes | None = None
        self._sequence = 0

    def feed(self, data: bytes) -> bytes:
        """What to append to the stream: of the first segment everything, of the later ones moof and mdat.

        Fragments are numbered on. Raises OutputError where a segment was encoded with other settings than the first.
        """
        moov = next((data[start:end] for name, start, end in _boxes(data) if name == b"moov"), None)
        if moov is None:
            raise OutputError("A segment is no mp4: it has no moov box.")
        if self._moov is not None and moov != self._moov:
            raise OutputError("A segment was encoded with other settings than those before it.")
        wanted = (b"moof", b"mdat") if self._moov is not None else (b"ftyp", b"moov", b"uuid", b"moof", b"mdat")
        self._moov = moov
        return b"".join(
            self._numbered(data[start:end]) if name == b"moof" else data[start:end]
            for name, start, end in _boxes(data)
            if name in wanted
        )

    def finish(self) -> bytes:
        """What to append at the end: nothing, a fragmented mp4 may end anywhere between fragments."""
        return b""

    def _numbered(self, moof: bytes) -> bytes:
        self._sequence += 1
        numbered = bytearray(moof)
        for name, start, _ in _boxes(moof, 8):
            if name == b"mfhd":
                struct.pack_into(">I", numbered, start + 12, self._sequence)
        return bytes(numbered)


def with_priming(fragment: bytes, priming: Sequence[AudioPacket]) -> bytes:
    """The mp4 with packets in a box of their own after the moov, where only ``write_progressive`` looks for them."""
    if not priming:
        return fragment
    body = b"".join(
        _PRIMING_ENTRY.pack(packet.pts, packet.duration, len(packet.data)) + packet.data for packet in priming
    )
    box = struct.pack(">I4s", 24 + len(body), b"uuid") + _PRIMING_BOX + body
    after = next(end for name, _, end in _boxes(fragment) if name == b"moov")
    return fragment[:after] + box + fragment[after:]


def write_progressive(
    fragments_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Remux a joined stream to an mp4 with its index at the front; ``output_path`` appears whole or not at all.

    The file says that it is synthetic, whatever else ``metadata`` adds. A temporary file lies beside the output
    meanwhile. Raises OutputError where it cannot be written.
    """
    target = Path(output_path).absolute()
    part = target.with_name(f".lipsync-{secrets.token_hex(8)}.part")
    try:
        part.touch(exist_ok=False)
        _remux(Path(fragments_path).absolute(), part, dict(metadata or {}) | {"comment": SYNTHETIC})
        os.replace(part, target)
    except OutputError:
        raise
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"Cannot write {target}: {reason}. Choose a writable place with room.") from error
    finally:
        part.unlink(missing_ok=True)


def write_progressive_bytes(fragments: bytes, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """The progressive mp4 of a joined stream in memory; made in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory(prefix="lipsync-") as folder:
        source, target = Path(folder) / "fragments.mp4", Path(folder) / "result.mp4"
        source.write_bytes(fragments)
        write_progressive(source, target, metadata=metadata)
        return target.read_bytes()


def _remux(source: Path, target: Path, metadata: dict[str, str]) -> None:
    with (
        av.open(str(source), "r", format="mp4") as fragments,
        av.open(str(target), "w", format="mp4", container_options={"movflags": "faststart"}) as output,
    ):
        output.metadata.update(metadata)
        streams = {stream.index: output.add_stream_from_template(stream) for stream in fragments.streams}
        for stream in streams.values():
            if stream.codec_context.name in ("hevc", "libx265"):
                stream.codec_tag = "hvc1"
        for sound in fragments.streams.audio:
            for packet in _priming(source, streams[sound.index]):
                output.mux(packet)
        for packet in fragments.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)


def _priming(source: Path, stream: av.stream.Stream) -> Iterator[av.Packet[av.stream.Stream]]:
    """The packets before time 0 that ``with_priming`` put into the stream."""
    head = _head(source)
    body = next((head[start + 24 : end] for name, start, end in _boxes(head) if name == b"uuid"), b"")
    at = 0
    while at < len(body):
        pts, duration, size = _PRIMING_ENTRY.unpack_from(body, at)
        at += _PRIMING_ENTRY.size
        packet: av.Packet[av.stream.Stream] = av.Packet(body[at : at + size])
        packet.pts = packet.dts = pts
        packet.duration, packet.time_base = duration, stream.time_base or Fraction(1)
        packet.stream, packet.is_keyframe = stream, True
        yield packet
        at += size


def _head(path: Path) -> bytes:
    """The stream up to its first fragment."""
    with path.open("rb") as file:
        head = b""
        while len(sized := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", sized)
            if name in (b"moof", b"mdat") or size < 8:
                break
            head += sized + file.read(size - 8)
    return head


def _boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the boxes that lie one after the other from ``start`` on."""
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1:
            size = struct.unpack_from(">Q", data, start + 8)[0]
        if size < 8 or start + size > len(data):
            raise OutputError(f"A segment is no whole mp4: its {name!r} box passes the end.")
        yield name, start, start + size
        start += size
