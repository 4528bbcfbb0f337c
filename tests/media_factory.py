"""Small media made on the spot, the same bytes every time: numbered videos, tones, images, files gone wrong."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

from lipsync.core import F32, U8

NUMBER_BITS = 12
_COLUMNS, _ROWS = 8, 2
_WHITE, _BLACK = 235, 20

Draw = Callable[[int, int, int], U8]
"""(frame number, width, height) to an upright BGR picture."""


# ---------------------------------------------------------------- pictures with a number


def background(number: int, width: int, height: int) -> U8:
    """A smooth coloured BGR picture that moves a little with ``number``; equal arguments, equal pixels."""
    x = np.linspace(0, 2 * np.pi, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 2 * np.pi, height, dtype=np.float32)[:, None]
    turn = number * 0.1
    planes = (np.sin(x + turn) + 0 * y, np.cos(y - turn) + 0 * x, np.sin(x + y + turn))
    return np.stack([(128 + 70 * plane).astype(np.uint8) for plane in planes], axis=-1)


def draw_number(bgr: U8, number: int) -> None:
    """Write ``number`` modulo 4096 in place as 2 × 8 black and white cells over the upper quarter of the picture."""
    number %= 1 << NUMBER_BITS
    bits = (number << 4) | _check(number)
    height, width = bgr.shape[:2]
    for cell in range(_COLUMNS * _ROWS):
        row, column = divmod(cell, _COLUMNS)
        y1, y2 = row * height // 8, (row + 1) * height // 8
        x1, x2 = column * width // 8, (column + 1) * width // 8
        bgr[y1:y2, x1:x2] = _WHITE if bits >> (15 - cell) & 1 else _BLACK


def read_number(bgr: U8) -> int:
    """The number in a picture that ``draw_number`` wrote, at any size; ValueError where none can be read."""
    height, width = bgr.shape[:2]
    bits = 0
    for cell in range(_COLUMNS * _ROWS):
        row, column = divmod(cell, _COLUMNS)
        y, x = (2 * row + 1) * height // 16, (2 * column + 1) * width // 16
        reach_y, reach_x = max(1, height // 40), max(1, width // 40)
        level = float(bgr[y - reach_y : y + reach_y, x - reach_x : x + reach_x].mean())
        if 90 < level < 165:
            raise ValueError(f"cell {cell} is neither black nor white ({level:.0f})")
        bits = bits << 1 | (level > 128)
    number, check = bits >> 4, bits & 15
    if check != _check(number):
        raise ValueError(f"check bits of {number} do not fit")
    return number


def _check(number: int) -> int:
    return ((number * 7) ^ (number >> 4) ^ (number >> 8) ^ 0b1010) & 15


def numbered(number: int, width: int, height: int) -> U8:
    picture = background(number, width, height)
    draw_number(picture, number)
    return picture


# ---------------------------------------------------------------- video


def video_bytes(
    *,
    frames: int,
    size: tuple[int, int] = (160, 120),
    fps: float | Fraction = 25,
    gop: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str = "mp4",
    rotation: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    audio_seconds: float | None = None,
    audio_rate: int = 48_000,
    number_frames: bool = True,
    draw: Draw | None = None,
    b_frames: int = 0,
    full_range: bool = False,
    matrix: str = "bt709",
    transfer: int | None = None,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A video whose frame n carries n, readable with ``read_number``.

    ``size`` is width, height as shown; ``rotation`` (0, 90, 180, 270) is the clockwise turn that a player must apply.
    ``pts`` are presentation times in ``time_base`` (default 1/90000 with pts, 1/fps without), one per frame.
    ``draw`` replaces the pictures. ``pixel_aspect`` is that of a coded pixel. ``audio_seconds`` adds a 440 Hz AAC (mp3 in avi, opus in webm) track.
    """
    buffer = io.BytesIO()
    rate = fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(100_000)
    base = time_base or (Fraction(1, 90_000) if pts is not None else 1 / rate)
    with av.open(
        buffer, "w", format=_MUXERS.get(container, container), options=_EXACT | (container_options or {})
    ) as output:
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        coded = size[::-1] if rotation in (90, 270) else size
        stream.width, stream.height = coded
        stream.pix_fmt = pix_fmt
        _configure(stream.codec_context, base=base, gop=gop, b_frames=b_frames, full_range=full_range, matrix=matrix)
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        stream.options = _codec_options(codec) | (options or {})
        if rotation:
            stream.set_display_rotation(-rotation)
        sound = None
        if audio_seconds is not None:
            sound = output.add_stream(_AUDIO_CODECS.get(container, "aac"), rate=audio_rate, layout="mono")
        for number in range(frames):
            make = draw or (numbered if number_frames else background)
            picture = np.ascontiguousarray(np.rot90(make(number, *size), rotation // 90))
            frame = _to_yuv(picture, pix_fmt, full_range=full_range, matrix=matrix)
            frame.pts = number if pts is None else pts[number]
            frame.time_base = base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            write_samples(output, sound, seconds=audio_seconds or 0.0)
    return buffer.getvalue()


def _configure(context: Any, *, base: Fraction, gop: int, b_frames: int, full_range: bool, matrix: str) -> None:
    context.time_base = base
    context.gop_size = gop
    context.max_b_frames = b_frames
    context.thread_count = 1
    context.color_range = 2 if full_range else 1
    tags = {"bt709": (1, 1, 1), "bt601": (6, 6, 6), "bt2020": (9, 9, 14)}[matrix]
    context.colorspace, context.color_primaries, context.color_trc = tags


def _codec_options(codec: str) -> dict[str, str]:
    if codec == "libx264":
        return {"preset": "ultrafast", "crf": "18", "sc_threshold": "0"}
    if codec == "libx265":
        return {"preset": "ultrafast", "crf": "18", "x265-params": "log-level=none:pools=none:frame-threads=1"}
    if codec.startswith("libvpx"):
        return {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
    if codec == "libsvtav1":
        return {"preset": "12", "crf": "20", "svtav1-params": "lp=1"}
    return {"b": "4M"} if codec == "mpeg4" else {}


def _to_yuv(bgr: U8, pix_fmt: str, *, full_range: bool, matrix: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(bgr, format="bgr24")
    if pix_fmt in ("bgr24", "rgb24", "bgr0", "bgra", "rgba", "pal8", "rgb8", "gbrp"):
        return frame.reformat(format=pix_fmt)
    space = {"bt709": Colorspace.ITU709, "bt601": Colorspace.ITU601, "bt2020": 9}[matrix]
    return frame.reformat(format=pix_fmt, dst_colorspace=space, dst_color_range=2 if full_range else 1)


_EXACT = {"fflags": "+bitexact"}  # no random ids, no dates
_MUXERS = {"mkv": "matroska", "ts": "mpegts", "m4a": "ipod"}
_AUDIO_CODECS = {"avi": "libmp3lame", "webm": "libopus", "flv": "libmp3lame"}


# ---------------------------------------------------------------- audio


def tone(seconds: float, *, sample_rate: int = 48_000, channels: int = 1, hz: float = 440.0) -> F32:
    """(channels, n) float32 in -0.3…0.3: a sine, a little higher in each channel."""
    t = np.arange(round(seconds * sample_rate), dtype=np.float64) / sample_rate
    return np.stack([0.3 * np.sin(2 * np.pi * hz * (1 + c / 4) * t) for c in range(channels)]).astype(np.float32)


_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def audio_bytes(
    *,
    seconds: float = 1.0,
    sample_rate: int = 48_000,
    channels: int = 1,
    codec: str = "pcm_s16le",
    container: str = "wav",
    samples: F32 | None = None,
    hz: float = 440.0,
) -> bytes:
    """A sound file: a tone, or the given (channels, n) samples. container: wav mp3 flac ogg adts mp4 m4a aiff w64…"""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=_MUXERS.get(container, container), options=_EXACT) as output:
        count = len(samples) if samples is not None else channels
        stream = output.add_stream(codec, rate=sample_rate, layout=_LAYOUTS[count])
        if codec.startswith("wma"):
            stream.bit_rate = 96_000  # these encoders have no rate of their own
        write_samples(output, stream, seconds=seconds, samples=samples, hz=hz)
    return buffer.getvalue()


def write_samples(output: Any, stream: Any, *, seconds: float, samples: F32 | None = None, hz: float = 440.0) -> None:
    """Encode a tone, or the given (channels, n) samples, into an output's stream, to its end."""
    context = stream.codec_context
    if samples is None:
        samples = tone(seconds, sample_rate=context.sample_rate, channels=context.layout.nb_channels, hz=hz)
    resampler = av.AudioResampler(
        format=context.format, layout=context.layout, rate=context.sample_rate, frame_size=context.frame_size or 1024
    )
    for start in range(0, samples.shape[1], 1024):
        block = samples[:, start : start + 1024]
        # interleaved, since from_ndarray fails on eight planes
        frame = av.AudioFrame.from_ndarray(block.T.reshape(1, -1), format="flt", layout=context.layout)
        frame.sample_rate, frame.pts, frame.time_base = context.sample_rate, start, Fraction(1, context.sample_rate)
        for part in resampler.resample(frame):
            output.mux(stream.encode(part))
    for part in resampler.resample(None):
        output.mux(stream.encode(part))
    output.mux(stream.encode(None))


# ---------------------------------------------------------------- images


def image_bytes(
    *,
    size: tuple[int, int] = (160, 120),
    format: str = "png",
    mode: str = "RGB",
    number: int | None = 0,
    orientation: int | None = None,
    animation: int | None = None,
    duration_ms: int | Sequence[int] = 40,
    **save: Any,
) -> bytes:
    """A still, or with ``animation=n`` a gif/webp/png of frames numbered from ``number`` (None: no number)."""
    if format.lower() in ("heif", "heic"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        format = "heif"
    pictures = [_image(size, mode, None if number is None else number + n) for n in range(animation or 1)]
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        save["exif"] = exif
    if animation is not None:
        save |= {"save_all": True, "append_images": pictures[1:], "duration": duration_ms, "loop": 0}
    buffer = io.BytesIO()
    pictures[0].save(buffer, format=format, **save)
    return buffer.getvalue()


def _image(size: tuple[int, int], mode: str, number: int | None) -> Image.Image:
    bgr = background(0, *size) if number is None else numbered(number, *size)
    rgb = Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        image = rgb.convert(mode)
        alpha = np.full((size[1], size[0]), 255, np.uint8)
        alpha[size[1] // 2 :, size[0] // 2 :] = 0  # the lower right quarter is transparent
        image.putalpha(Image.fromarray(alpha))
        return image
    return rgb.convert(mode)


# ---------------------------------------------------------------- files gone wrong


def boxes_of(mp4: bytes) -> Iterator[tuple[str, int, int]]:
    """(type, start, size) of the boxes that lie one after the other."""
    at = 0
    while at + 8 <= len(mp4):
        size, kind = struct.unpack_from(">I4s", mp4, at)
        if size == 1:
            size = struct.unpack_from(">Q", mp4, at + 8)[0]
        yield kind.decode("latin-1"), at, size or len(mp4) - at
        at += size or len(mp4) - at


def truncated(data: bytes, *, keep: float = 0.5) -> bytes:
    """The first part of a file, as a broken transfer leaves it."""
    return data[: int(len(data) * keep)]


def faststart(mp4: bytes) -> bytes:
    """The same mp4 with its headers in front, as files for the web are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faststart.mp4"
        options = _EXACT | {"movflags": "faststart"}
        with av.open(io.BytesIO(mp4)) as source, av.open(str(path), "w", format="mp4", options=options) as output:
            streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream_index]
                    output.mux(packet)
        return path.read_bytes()


_PLAIN_MOVIE: dict[str, Any] = {
    "frames": 3, "codec": "mjpeg", "pix_fmt": "yuvj420p", "full_range": True, "container": "mov", "audio_seconds": 0.2,
    "options": {"qmin": "5", "qmax": "5"},
}  # fmt: skip


def secret_movie() -> bytes:
    """A movie whose frames are numbered from 1000: what ``movie_elsewhere`` would have a careless reader show."""
    return video_bytes(**_PLAIN_MOVIE, draw=lambda number, width, height: numbered(number + 1000, width, height))


def movie_elsewhere(path: Path) -> bytes:
    """A movie whose tracks' samples are said to lie in the file at ``path`` (an alias entry in each data reference)."""
    mov = video_bytes(**_PLAIN_MOVIE)
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    name = str(path).encode()
    record += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">HH", 0xFFFF, 0) + bytes(40)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record

    def rebuild(data: bytes) -> bytes:
        out = b""
        for kind, start, size in boxes_of(data):
            body = data[start + 8 : start + size]
            if kind == "dref":
                body = body[:8] + entry
            elif kind in ("moov", "trak", "mdia", "minf", "dinf"):
                body = rebuild(body)
            out += struct.pack(">I4s", 8 + len(body), kind.encode("latin-1")) + body
        return out

    return rebuild(mov)


def stream_copy_cut(data: bytes, *, start_s: float, container: str = "mp4") -> bytes:
    """What ``ffmpeg -ss start -c copy`` leaves: packets from the keyframe before, timestamps shifted below zero."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(buffer, "w", format=_MUXERS.get(container, container), options=_EXACT) as output,
    ):
        stream_in = source.streams.video[0]
        stream_out = output.add_stream_from_template(stream_in)
        base = stream_in.time_base
        assert base is not None
        source.seek(int(start_s / base), stream=stream_in)
        for packet in source.demux(stream_in):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts -= int(start_s / base)
            packet.dts -= int(start_s / base)
            packet.stream = stream_out
            output.mux(packet)
    return buffer.getvalue()


PLAYLISTS: dict[str, bytes] = {
    "m3u8 to http": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "m3u8 to file": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "m3u8 after a byte order mark": b"\xef\xbb\xbf#EXTM3U\n#EXTINF:10,\n/etc/passwd\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "concat without a header": b"file '/etc/passwd'\nfile '/etc/hosts'\n",
    "dash": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>\n',
    "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 9999 RTP/AVP 96\r\n",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"><image href="file:///etc/passwd"/></svg>',
    "zip": b"PK\x03\x04" + bytes(60),
    "text": b"this is not a video, it is a letter\n" * 8,
}
"""Uploads that would make a careless reader open other files or sockets, and other things that are no media."""
