"""A segment's pictures and its share of the voice to a complete fragmented mp4, by an encoder of its own.

No B-frames. They would make decode times begin before 0, which a fragment's unsigned clock cannot say: measured, the
muxer wraps them to 2^64 - 2 frames, and signed composition offsets shift FFmpeg's own reading by two frames. Without
them every player starts at 0 with no edit list, and encoding costs less CPU time for a somewhat larger file
(docs/decisions has the figures).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.container
import cv2
import numpy as np
from av.stream import Stream

from lipsync.core import U8, AudioFormat, AudioPacket, Color
from lipsync.errors import OutputError
from lipsync.media.mp4 import SYNTHETIC, with_priming
from lipsync.media.picture import Box, Patched, Picture, places
from lipsync.options import Options

_FRAGMENT = {
    "movflags": "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
}
_ENCODERS = {"h264": "libx264", "h265": "libx265"}
_MATRICES = {"bt709": (1, 1, 1), "bt601": (6, 6, 6), "bt2020": (9, 9, 14)}  # H.273: matrix, primaries, transfer
_TRANSFERS = {"pq": 16, "hlg": 18}
_LOWEST_TIMESCALE = 10_000
_KEY_DISTANCE = 250
_SQUARE = Fraction(1)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the encoder is given: even sizes, since 4:2:0 video cannot say an odd one."""

    width: int
    height: int
    color: Color
    pixel_aspect: Fraction


def encode_segment(
    pictures: Iterable[Picture],
    *,
    first_frame: int,
    fps: Fraction,
    packets: Sequence[AudioPacket],
    audio_format: AudioFormat,
    options: Options,
    pixel_aspect: Fraction = _SQUARE,
) -> bytes:
    """A complete mp4 of one fragment, for ``FragmentJoiner``: ftyp, moov, moof, mdat.

    Picture i is shown at exactly (first_frame + i) / fps; ``packets`` keep their own times. Planes go to the encoder as
    they are, tagged with the first picture's colour and with ``pixel_aspect`` (width over height of a pixel, 1 where
    ``options.resize`` says what is to be shown); equal arguments make equal bytes. An odd width or height gets one
    more column or row, a copy of the last: H.264 and H.265 crop 4:2:0 pictures in steps of two pixels only.

    Packets with a negative pts (the AAC encoder's priming) are carried beside the stream, in a box that players skip,
    because a fragment cannot say a negative time: see ``lipsync.media.mp4``. Raises OutputError.
    """
    remaining = iter(pictures)
    first = next(remaining, None)
    if first is None:
        raise OutputError("A segment needs at least one picture.")
    width, height = options.resize or (first.width, first.height)
    frame = _Frame(width + width % 2, height + height % 2, first.color, _SQUARE if options.resize else pixel_aspect)
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4", container_options=_FRAGMENT | _timescale(fps)) as output:
            output.metadata["comment"] = SYNTHETIC
            video = _video_stream(output, frame, fps, options)
            audio = _audio_stream(output, audio_format)
            canvas = _Canvas(frame, options.resize)
            for number, picture in enumerate(itertools.chain([first], remaining), first_frame):
                shown = canvas.show(picture)
                shown.pts, shown.time_base = number, 1 / fps
                output.mux(video.encode(shown))
            output.mux(video.encode(None))
            output.mux([_av_packet(packet, audio, audio_format) for packet in packets if packet.pts >= 0])
    except av.error.FFmpegError as error:
        raise OutputError(
            f"Encoding {options.codec} at {width}×{height} failed: {error}. Try another codec or size."
        ) from error
    return with_priming(buffer.getvalue(), [packet for packet in packets if packet.pts < 0])


def _timescale(fps: Fraction) -> dict[str, str]:
    """Ticks a second such that every frame begins on one."""
    return {"video_track_timescale": str(fps.numerator * -(-_LOWEST_TIMESCALE // fps.numerator))}


def _video_stream(
    output: av.container.OutputContainer, frame: _Frame, fps: Fraction, options: Options
) -> av.VideoStream:
    stream = output.add_stream(_ENCODERS[options.codec], rate=fps)
    assert isinstance(stream, av.VideoStream)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = frame.width, frame.height, "yuv420p"
    context.time_base, context.framerate = 1 / fps, fps
    if frame.pixel_aspect != 1:
        context.sample_aspect_ratio = frame.pixel_aspect
    context.thread_count = options.encoder_threads
    context.max_b_frames, context.gop_size = 0, _KEY_DISTANCE
    context.colorspace, context.color_primaries, transfer = _MATRICES[frame.color.matrix]
    context.color_trc = _TRANSFERS.get(frame.color.transfer, transfer)
    context.color_range = 2 if frame.color.full_range else 1
    context.options = {"crf": str(options.crf), "preset": options.preset}
    if options.codec == "h264":
        # stitchable: headers depend on settings alone, never on content
        context.options |= {"x264-params": "stitchable=1"}
    else:
        threads = options.encoder_threads
        pools = "none" if threads == 1 else str(threads)
        context.options |= {"x265-params": f"log-level=error:open-gop=0:bframes=0:frame-threads=1:pools={pools}"}
        stream.codec_tag = "hvc1"  # the tag that Apple's players ask for
    return stream


def _audio_stream(output: av.container.OutputContainer, audio_format: AudioFormat) -> av.AudioStream:
    """A stream for packets that are encoded already; the encoder that comes with it is only asked for its header."""
    stream = output.add_stream("aac", rate=audio_format.sample_rate_hz, layout=audio_format.layout)
    assert isinstance(stream, av.AudioStream)
    context = stream.codec_context
    context.bit_rate = audio_format.bit_rate_bps
    context.time_base = Fraction(1, audio_format.sample_rate_hz)
    context.open()
    context.extradata = audio_format.extradata
    return stream


def _av_packet(packet: AudioPacket, stream: av.AudioStream, audio_format: AudioFormat) -> av.Packet[Stream]:
    out = av.Packet(packet.data)
    out.pts = out.dts = packet.pts
    out.duration = packet.duration
    out.time_base = Fraction(1, audio_format.sample_rate_hz)
    out.stream = stream
    out.is_keyframe = True
    return out


class _Canvas:
    """The one frame that all pictures of a segment are put into; encoders keep copies of their own.

    Where a picture shows the same source frame as the one before it, only the boxes of the two are written: that is
    every picture of a still face.
    """

    def __init__(self, frame: _Frame, size: tuple[int, int] | None) -> None:
        self._size = size
        self._frame = av.VideoFrame(frame.width, frame.height, "yuv420p")
        self._base: Picture | None = None
        self._box: Box | None = None

    def show(self, picture: Picture) -> av.VideoFrame:
        """The frame, showing ``picture``; it is valid until the next call."""
        self._frame.make_writable()  # copies, should an encoder hold on to it after all
        in_place = (picture.width, picture.height) == (self._frame.width, self._frame.height)
        if isinstance(picture, Patched) and in_place and self._size in (None, (picture.width, picture.height)):
            self._show_base(picture.base, picture.box)
            picture.draw_onto(self._memory())
            self._box = picture.box
        else:
            self._fill(_planes(picture, self._size))
            self._base = None
        return self._frame

    def _show_base(self, base: Picture, box: Box) -> None:
        """Make the frame show ``base`` everywhere but in ``box``."""
        if base is not self._base:
            self._fill((base.y, base.u, base.v))
        elif self._box is not None and self._box != box:
            for memory, place, plane in zip(self._memory(), places(self._box), (base.y, base.u, base.v), strict=True):
                memory[place] = plane[place]
        self._base = base

    def _memory(self) -> tuple[U8, U8, U8]:
        y, u, v = (_pixels(plane) for plane in self._frame.planes)
        return y, u, v

    def _fill(self, planes: tuple[U8, U8, U8]) -> None:
        for memory, pixels in zip(self._memory(), planes, strict=True):
            _fill(memory, pixels)


def _pixels(plane: av.video.plane.VideoPlane) -> U8:
    """A plane's memory without the ends of its lines that are not shown."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _fill(memory: U8, pixels: U8) -> None:
    """Copy ``pixels`` into a plane that may be one wider or higher."""
    height, width = pixels.shape
    if not (0 <= memory.shape[0] - height <= 1 and 0 <= memory.shape[1] - width <= 1):
        raise OutputError(
            f"A picture of another size came within one segment: {width}×{height} in place of {memory.shape}."
        )
    memory[:height, :width] = pixels
    memory[:height, width:] = pixels[:, -1:]
    memory[height:] = memory[height - 1]


def _planes(picture: Picture, size: tuple[int, int] | None) -> tuple[U8, U8, U8]:
    """The three planes, scaled where a size was asked for."""
    if size is None or size == (picture.width, picture.height):
        return picture.y, picture.u, picture.v
    width, height = size
    luma = _scaled(picture.y, width, height)
    half_width, half_height = (width + 1) // 2, (height + 1) // 2
    # chroma lies on the left one of two luma columns, so a plane scaled about its middle is a little off
    shift = (1.0 - half_width / picture.u.shape[1]) / 4
    u, v = (_shifted(_scaled(plane, half_width, half_height), shift) for plane in (picture.u, picture.v))
    return luma, u, v


def _scaled(plane: U8, width: int, height: int) -> U8:
    is_smaller = width <= plane.shape[1] and height <= plane.shape[0]
    scaled = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
    return np.asarray(scaled, np.uint8)


def _shifted(plane: U8, columns: float) -> U8:
    """The plane moved right by a part of a column."""
    move = np.array([[1.0, 0.0, columns], [0.0, 1.0, 0.0]])
    moved = cv2.warpAffine(plane, move, plane.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)
