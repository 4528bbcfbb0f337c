"""Bad and strange inputs, made with fixed seeds: each must give a typed error or a valid mp4.

``faces(port, secret)`` and ``voices(port, secret)`` name makers of bytes; playlists among them point at 127.0.0.1:port
and at the file ``secret``, where a canary listens and lies. ``wrong_names`` are files whose names say something else
than their content, ``mutants`` damaged copies of real containers.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from tests.media_factory import (
    audio_bytes,
    background,
    boxes_of,
    image_bytes,
    movie_elsewhere,
    stream_copy_cut,
    truncated,
    video_bytes,
)

SIZE = (160, 120)
Maker = Callable[[], bytes]
Role = Literal["face", "voice"]


def scripts(port: int, secret: str) -> dict[str, Maker]:
    """Texts that a careless demuxer would follow to a socket or a file."""
    http, file = f"http://127.0.0.1:{port}/canary.ts", f"file://{secret}"
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT5S">'
        f"<Period><AdaptationSet><Representation id='1' bandwidth='1'><BaseURL>{http}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>"
    )
    return {
        "playlist m3u8 to http": lambda: (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{http}\n#EXT-X-ENDLIST\n".encode()
        ),
        "playlist m3u8 to a file": lambda: f"#EXTM3U\n#EXTINF:5,\n{file}\n#EXT-X-ENDLIST\n".encode(),
        "playlist with a byte order mark": lambda: f"\ufeff#EXTM3U\n#EXTINF:5,\n{http}\n".encode(),
        "ffconcat to a file": lambda: f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
        "ffconcat to http": lambda: f"ffconcat version 1.0\nfile '{http}'\n".encode(),
        "dash manifest": mpd.encode,
        "sdp": sdp.encode,
    }


def playlists(port: int, secret: str) -> dict[str, Maker]:
    """The scripts, and movies that say the same in boxes."""
    return scripts(port, secret) | {
        "reference movie": lambda: _reference_movie(f"http://127.0.0.1:{port}/canary.ts"),
        "movie whose samples lie in another file": lambda: movie_elsewhere(Path(secret)),
    }


def faces(port: int, secret: str) -> dict[str, Maker]:
    """Face inputs gone wrong, or merely strange."""
    good = video_bytes(frames=12, size=SIZE)
    return {
        **{f"face: {name}": make for name, make in playlists(port, secret).items()},
        "nothing at all": lambda: b"",
        "one byte": lambda: b"\x00",
        "zeros": lambda: bytes(100_000),
        "noise": lambda: np.random.default_rng(0).bytes(50_000),
        "text": lambda: b"hello, I am not a video\n" * 50,
        "html": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "pdf": lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "zip": _zip,
        "gzip": lambda: b"\x1f\x8b\x08\x00" + bytes(60),
        "elf": lambda: b"\x7fELF\x02\x01\x01" + bytes(60),
        "sound alone": lambda: audio_bytes(seconds=0.5),
        "mp4 without frames": lambda: _only_boxes(good, keep={"ftyp", "moov"}),
        "mp4 cut in half, index in front": lambda: truncated(_faststart(good), keep=0.6),
        "mp4 cut in half, index behind": lambda: truncated(good, keep=0.5),
        "mkv cut": lambda: truncated(video_bytes(frames=30, size=SIZE, container="matroska"), keep=0.6),
        "avi cut": lambda: truncated(video_bytes(frames=30, size=SIZE, codec="mpeg4", container="avi"), keep=0.6),
        "ts cut": lambda: truncated(video_bytes(frames=30, size=SIZE, container="ts"), keep=0.601),
        "webm recorded live, cut": lambda: truncated(
            video_bytes(frames=30, size=SIZE, codec="libvpx", container="webm", container_options={"live": "1"}),
            keep=0.6,
        ),
        "mpeg program stream": lambda: video_bytes(
            frames=30, size=SIZE, codec="mpeg2video", container="mpeg", b_frames=2
        ),
        "mpeg program stream cut": lambda: truncated(
            video_bytes(frames=30, size=SIZE, codec="mpeg2video", container="mpeg"), keep=0.6
        ),
        "wmv": lambda: video_bytes(frames=12, size=SIZE, codec="wmv2", container="asf"),
        "jpeg cut": lambda: truncated(image_bytes(format="jpeg", size=(320, 240)), keep=0.5),
        "png cut": lambda: truncated(image_bytes(format="png", size=(320, 240)), keep=0.5),
        "png with a broken checksum": _broken_png,
        "png of 40000 by 40000": lambda: _png_bomb(40_000, 40_000),
        "png of 1 by 1": lambda: image_bytes(format="png", size=(1, 1), number=None),
        "png of 3000 by 70": lambda: image_bytes(format="png", size=(3000, 70), number=None),
        "video of 16 by 16": lambda: video_bytes(frames=5, size=(16, 16), number_frames=False),
        "video of 8192 by 4352": lambda: video_bytes(frames=1, size=(8192, 4352), number_frames=False),
        "video of odd size": lambda: video_bytes(frames=8, size=(161, 123), pix_fmt="yuv444p"),
        "mp4 of 90,000 frames": lambda: _duration_bomb("mp4"),
        "mkv of 90,000 frames that tells no duration": lambda: _duration_bomb("matroska", live="1"),
        "mkv of 90,000 frames that claims ten seconds": _modest_bomb,
        "video that claims 1000 frames a second": lambda: video_bytes(
            frames=20, size=SIZE, fps=1000, codec="mpeg4", container="avi"
        ),
        "video of one frame": lambda: video_bytes(frames=1, size=SIZE),
        "video of two frames an hour apart": lambda: video_bytes(
            frames=2, size=SIZE, pts=[0, 3600], time_base=Fraction(1)
        ),
        "video with a variable rate": lambda: video_bytes(
            frames=8, size=SIZE, pts=[0, 40, 50, 300, 310, 320, 700, 740], time_base=Fraction(1, 1000)
        ),
        "video turned by its tag": lambda: video_bytes(frames=6, size=(120, 160), rotation=90),
        "video cut by stream copy": lambda: stream_copy_cut(
            video_bytes(frames=60, size=SIZE, gop=20, b_frames=2), start_s=1.1
        ),
        "mp4 and zip in one": lambda: good + _zip(),
        "jpeg and html in one": lambda: (
            image_bytes(format="jpeg", size=(320, 240)) + b"<html><script>1</script></html>"
        ),
        "mp4 with trailing garbage": lambda: good + np.random.default_rng(1).bytes(4000),
        "mp4 with an absurd box size": lambda: (
            good[:4] + b"ftyp" + good[8:40] + struct.pack(">I4s", 0xFFFFFFF0, b"moov")
        ),
        "mp4 with nested nonsense": lambda: good[:32] + b"\x00\x00\x00\x10moov" * 400,
        "gif animation": lambda: image_bytes(format="gif", size=(160, 120), animation=6),
        "webp animation": lambda: image_bytes(format="webp", size=(160, 120), animation=6),
        "apng animation": lambda: image_bytes(format="png", size=(160, 120), animation=4),
        "gif of one pixel": lambda: image_bytes(format="gif", size=(1, 1), number=None),
        "png with alpha": lambda: image_bytes(format="png", size=(160, 120), mode="RGBA"),
        "png of 16 bits": lambda: image_bytes(format="png", size=(160, 120), mode="I;16"),
        "png with a palette": lambda: image_bytes(format="png", size=(160, 120), mode="P"),
        "jpeg in CMYK": lambda: image_bytes(format="jpeg", size=(160, 120), mode="CMYK"),
        "jpeg in grey": lambda: image_bytes(format="jpeg", size=(160, 120), mode="L"),
        "jpeg with a hostile exif": _exif_bomb,
        "heic": lambda: image_bytes(format="heic", size=SIZE),
        "heic turned by its tag": lambda: image_bytes(format="heic", size=SIZE, orientation=6),
        "heic cut": lambda: truncated(image_bytes(format="heic", size=(320, 240)), keep=0.5),
        "avif": lambda: image_bytes(format="avif", size=SIZE),
        "avif with alpha": lambda: image_bytes(format="avif", size=SIZE, mode="RGBA"),
        "avif cut": lambda: truncated(image_bytes(format="avif", size=(320, 240)), keep=0.5),
        "tiff": lambda: image_bytes(format="tiff", size=(160, 120)),
        "bmp": lambda: image_bytes(format="bmp", size=(160, 120)),
        "hdr video": lambda: video_bytes(
            frames=4, size=SIZE, codec="libx265", pix_fmt="yuv420p10le", transfer=16, matrix="bt2020"
        ),
    }


def voices(port: int, secret: str) -> dict[str, Maker]:
    """Voices gone wrong, or merely strange."""
    nan = np.full((1, 8000), np.nan, np.float32)
    infinite = np.concatenate([np.zeros(4000, np.float32), [np.float32(np.inf)], np.zeros(4000, np.float32)])[None]
    return {
        **{f"voice: {name}": make for name, make in playlists(port, secret).items()},
        "voice of no bytes": lambda: b"",
        "voice of noise bytes": lambda: np.random.default_rng(2).bytes(30_000),
        "voice that is a picture": lambda: image_bytes(format="png", size=SIZE),
        "video without sound": lambda: video_bytes(frames=5, size=SIZE),
        "wav of no samples": _empty_wav,
        "wav of one sample": lambda: audio_bytes(samples=np.zeros((1, 1), np.float32)),
        "wav of 0.1 s": lambda: audio_bytes(seconds=0.1),
        "wav with NaN": lambda: audio_bytes(samples=nan, codec="pcm_f32le"),
        "wav with infinity": lambda: audio_bytes(samples=infinite, codec="pcm_f32le"),
        "silence": lambda: audio_bytes(samples=np.zeros((1, 16_000), np.float32)),
        "wav at 1 kHz": lambda: audio_bytes(seconds=0.5, sample_rate=1000),
        "wav at 8 kHz": lambda: audio_bytes(seconds=0.5, sample_rate=8000),
        "wav at 192 kHz": lambda: audio_bytes(seconds=0.5, sample_rate=192_000),
        "wav at 384 kHz": lambda: audio_bytes(seconds=0.2, sample_rate=384_000),
        "wav of 8 channels": lambda: audio_bytes(seconds=0.5, channels=8),
        "wav cut": lambda: truncated(audio_bytes(seconds=2.0), keep=0.5),
        "wav that claims 4 GB": lambda: (
            audio_bytes(seconds=0.5)[:40] + b"\xff\xff\xff\xff" + audio_bytes(seconds=0.5)[44:]
        ),
        "mp3 with garbage in front": lambda: (
            bytes(3000) + audio_bytes(seconds=0.5, codec="libmp3lame", container="mp3")
        ),
        "mp3 cut": lambda: truncated(audio_bytes(seconds=2.0, codec="libmp3lame", container="mp3"), keep=0.5),
        "flac cut": lambda: truncated(audio_bytes(seconds=2.0, codec="flac", container="flac"), keep=0.5),
        "ogg cut": lambda: truncated(audio_bytes(seconds=2.0, codec="libopus", container="ogg"), keep=0.5),
        "aac cut": lambda: truncated(audio_bytes(seconds=2.0, codec="aac", container="adts"), keep=0.5),
        "ac3 cut": lambda: truncated(audio_bytes(seconds=2.0, codec="ac3", container="ac3"), keep=0.501),
        "wavpack cut": lambda: truncated(audio_bytes(seconds=2.0, codec="wavpack", container="wv"), keep=0.5),
        "tta cut": lambda: truncated(audio_bytes(seconds=2.0, codec="tta", container="tta"), keep=0.5),
        "au cut": lambda: truncated(audio_bytes(seconds=2.0, codec="pcm_s16be", container="au"), keep=0.5),
        "wav in adpcm": lambda: audio_bytes(seconds=0.5, codec="adpcm_ms"),
        "eleven minutes": lambda: audio_bytes(seconds=660, sample_rate=8000, codec="flac", container="flac"),
    }


@dataclass(frozen=True)
class WrongName:
    """A file whose name, or its very spelling, says something else than its content."""

    file_name: str
    holds: str
    role: Role
    wanted: str
    """What comes of it: "mp4", or the slug of the error."""
    make: Maker

    def __str__(self) -> str:
        return f"{self.file_name!a} holds {self.holds}"


def wrong_names(port: int, secret: str) -> list[WrongName]:
    """Extensions that lie, and names that are patterns or protocols to a demuxer that is given them."""
    movie, sound = partial(video_bytes, frames=6, size=SIZE, audio_seconds=0.4), partial(audio_bytes, seconds=0.4)
    webm, flac = partial(movie, codec="libvpx", container="webm"), partial(sound, codec="flac", container="flac")
    png, jpeg, heic, avif = (partial(image_bytes, format=name, size=SIZE) for name in ("png", "jpeg", "heic", "avif"))
    playlist = scripts(port, secret)["playlist m3u8 to http"]
    return [
        WrongName("photo.jpg", "mp4", "face", "mp4", movie),
        WrongName("photo.png", "jpeg", "face", "mp4", jpeg),
        WrongName("IMG_0001.JPG", "heic", "face", "mp4", heic),
        WrongName("clip.mp4", "png", "face", "mp4", png),
        WrongName("clip.avi", "webm", "face", "mp4", webm),
        WrongName("clip.m3u8", "mp4", "face", "mp4", movie),
        WrongName("clip.sdp", "mp4", "face", "mp4", movie),
        WrongName("concat:clip.mp4", "mp4", "face", "mp4", movie),
        WrongName("clip%03d.png", "png", "face", "mp4", png),
        WrongName("clip\u202egpj.mp4", "png", "face", "mp4", png),
        WrongName("clip", "avif", "face", "mp4", avif),
        WrongName("clip.mov", "a playlist", "face", "media_unsupported", playlist),
        WrongName("face.jpg", "html", "face", "media_unsupported", lambda: b"<!DOCTYPE html><html></html>"),
        WrongName("face.mp4", "wav", "face", "no_video_stream", sound),
        WrongName("voice.wav", "png", "voice", "no_audio_stream", png),
        WrongName("voice.mp3", "wav", "voice", "mp4", sound),
        WrongName("voice.png", "flac", "voice", "mp4", flac),
        WrongName("voice.flac", "mp4", "voice", "mp4", movie),
        WrongName("voice.m4a", "a playlist", "voice", "media_unsupported", playlist),
    ]


def mutants(count: int) -> Iterator[tuple[Role, bytes]]:
    """``count`` damaged copies of real files: bits flipped, runs zeroed, pieces cut, doubled or overwritten."""
    seeds: list[tuple[Role, bytes]] = [
        ("face", video_bytes(frames=10, size=SIZE, audio_seconds=0.4)),
        ("face", video_bytes(frames=10, size=SIZE, codec="libvpx", container="webm")),
        ("face", video_bytes(frames=10, size=SIZE, container="matroska", audio_seconds=0.4)),
        ("face", video_bytes(frames=10, size=SIZE, codec="mpeg4", container="avi", audio_seconds=0.4)),
        ("face", video_bytes(frames=6, size=SIZE, codec="libx265")),
        ("face", video_bytes(frames=10, size=SIZE, container="ts", audio_seconds=0.4)),
        ("face", video_bytes(frames=10, size=SIZE, codec="mpeg2video", container="mpeg", b_frames=2)),
        ("face", video_bytes(frames=10, size=SIZE, codec="wmv2", container="asf")),
        *(("face", image_bytes(format=name, size=SIZE, animation=4)) for name in ("gif", "webp")),
        *(("face", image_bytes(format=name, size=SIZE)) for name in ("png", "jpeg", "avif", "heic")),
        ("voice", audio_bytes(seconds=0.4)),
        ("voice", audio_bytes(seconds=0.4, codec="libmp3lame", container="mp3")),
        ("voice", audio_bytes(seconds=0.4, codec="flac", container="flac")),
        ("voice", audio_bytes(seconds=0.4, codec="libopus", container="ogg")),
        ("voice", audio_bytes(seconds=0.4, codec="aac", container="m4a")),
        ("voice", audio_bytes(seconds=0.4, codec="ac3", container="ac3")),
        ("voice", audio_bytes(seconds=0.4, codec="wavpack", container="wv")),
    ]
    for number in range(count):
        role, data = seeds[number % len(seeds)]
        yield role, _mutate(bytearray(data), np.random.default_rng(number))


def _mutate(data: bytearray, draw: np.random.Generator) -> bytes:
    for _ in range(int(draw.integers(1, 6))):
        at = int(draw.integers(0, len(data)))
        length = int(draw.integers(1, 64))
        kind = int(draw.integers(0, 5))
        if kind == 0:
            data[at] ^= 1 << int(draw.integers(0, 8))
        elif kind == 1:
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = draw.bytes(min(length, len(data) - at))
        if len(data) < 16:
            break
    return bytes(data)


def _empty_wav() -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36, b"WAVE") + form + struct.pack("<4sI", b"data", 0)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.txt", "x" * 1000)
    return buffer.getvalue()


def _only_boxes(mp4: bytes, *, keep: set[str]) -> bytes:
    return b"".join(mp4[start : start + size] for kind, start, size in boxes_of(mp4) if kind in keep)


def _faststart(mp4: bytes) -> bytes:
    """Index in front; chunk offsets are left wrong on purpose, which a reader must survive."""
    parts = {kind: mp4[start : start + size] for kind, start, size in boxes_of(mp4)}
    return parts["ftyp"] + parts["moov"] + parts["mdat"]


def _png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _broken_png() -> bytes:
    data = bytearray(image_bytes(format="png", size=(160, 120)))
    data[-30] ^= 0xFF
    return bytes(data)


def _exif_bomb() -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 60_000
    Image.fromarray(background(0, 160, 120)).save(buffer, "jpeg", exif=exif)
    return buffer.getvalue()


def _reference_movie(url: str) -> bytes:
    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + kind + body

    address = url.encode() + b"\x00"
    rdrf = box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(address)) + address)
    return box(b"ftyp", b"qt  \x00\x00\x00\x00qt  ") + box(b"moov", box(b"rmra", box(b"rmda", rdrf)))


@cache
def _duration_bomb(container: str, **options: str) -> bytes:
    """An hour at 25 frames a second in a megabyte: one picture, and 89,999 times that nothing changed."""
    buffer = io.BytesIO()
    grey = np.full((64, 64, 3), 128, np.uint8)
    with (
        av.open(io.BytesIO(video_bytes(frames=2, size=(64, 64), draw=lambda *_: grey))) as source,
        av.open(buffer, "w", format=container, options={"fflags": "+bitexact"} | options) as output,
    ):
        picture, unchanged = (bytes(packet) for packet in source.demux(video=0) if packet.size)
        stream = output.add_stream_from_template(source.streams.video[0])
        for number in range(90_000):
            packet = av.Packet(unchanged if number else picture)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            output.mux(packet)
    return buffer.getvalue()


def _modest_bomb() -> bytes:
    """The same behind a header that says ten seconds: only counting the packets tells."""
    data = bytearray(_duration_bomb("matroska"))
    at = data.index(b"\x44\x89\x88") + 3  # EBML: Duration, eight bytes
    assert math.isclose(struct.unpack_from(">d", data, at)[0], 3_600_000, rel_tol=0.01)
    struct.pack_into(">d", data, at, 10_000.0)
    return bytes(data)
