"""The nouns that every part of the library speaks: what is known of an input, a timeline, a segment, a fragment.

All are frozen, cheap to pickle, and free of pixels unless said. Units stand in the names; frame rates are
rational; a *source frame* is a number in presentation order, counted from 0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

U8: TypeAlias = npt.NDArray[np.uint8]
I32: TypeAlias = npt.NDArray[np.int32]
I64: TypeAlias = npt.NDArray[np.int64]
F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
Bool: TypeAlias = npt.NDArray[np.bool_]

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"
"""What a caller may hand in: a path of the caller's own, the bytes, or a readable binary file object."""

Transfer: TypeAlias = Literal["sdr", "pq", "hlg"]

NO_BOX = (-1, -1, -1, -1)
"""The row that stands for *no face* in an array of boxes."""


@dataclass(frozen=True, slots=True)
class Color:
    """How YUV samples map to colours: matrix and range decide the arithmetic, the transfer decides tone-mapping."""

    matrix: Literal["bt709", "bt601", "bt2020"] = "bt709"
    full_range: bool = False
    transfer: Transfer = "sdr"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The picture part of an input, from container headers alone. Width and height are as shown, rotation applied."""

    codec: str
    width: int
    height: int
    fps: Fraction
    """What headers say, mostly an average: 0.7 of a clip that holds frames for long. The index knows better."""
    duration_s: float
    frame_count: int | None
    rotation_deg: Literal[0, 90, 180, 270] = 0
    """Clockwise turn that brings the coded picture upright, after it was mirrored where that is asked for."""
    is_mirrored: bool = False
    """Whether the coded picture is flipped left to right before it is turned."""
    color: Color = Color()
    pixel_aspect: Fraction = Fraction(1)
    """How much wider than high a pixel is to be shown, as shown upright."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The sound part of an input, from container headers alone."""

    codec: str
    sample_rate_hz: int
    channels: int
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What an input is, found from its content and its headers without decoding a frame."""

    kind: Literal["image", "animation", "video", "audio"]
    container: str
    byte_count: int
    video: VideoInfo | None = None
    audio: AudioInfo | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Every source frame's presentation time and whether a decoder can start there; made by demuxing only.

    ``pts_ticks`` (N,) int64 grows strictly; ``end_ticks`` is where the last frame stops being shown. A still image
    has one frame and ``end_ticks == pts_ticks[0]``: it has no duration of its own.
    """

    pts_ticks: I64
    is_key: Bool
    end_ticks: int
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.pts_ticks)

    @property
    def is_still(self) -> bool:
        return len(self.pts_ticks) == 1 and self.end_ticks == int(self.pts_ticks[0])

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's start to the last frame's end."""
        return (self.end_ticks - int(self.pts_ticks[0])) * self.time_base

    def keyframe_before(self, frame: int) -> int:
        """The last source frame at or before ``frame`` from which decoding can start."""
        keys = np.flatnonzero(self.is_key[: frame + 1])
        return int(keys[-1]) if len(keys) else 0


@dataclass(frozen=True, slots=True)
class Detection:
    """One candidate face in pixels of the upright source frame: box corners, score, five landmarks where known."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float
    landmarks: tuple[tuple[float, float], ...] | None = None

    @property
    def area(self) -> float:
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    def scaled(self, by_x: float, by_y: float) -> Detection:
        """The same face in pixels of the same picture at another size."""
        points = None if self.landmarks is None else tuple((x * by_x, y * by_y) for x, y in self.landmarks)
        return Detection(self.x1 * by_x, self.y1 * by_y, self.x2 * by_x, self.y2 * by_y, self.score, points)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A contiguous run of output frames: the unit of work, of retry, of scheduling, of streaming."""

    number: int
    first_frame: int
    source_frames: I32  # (n,) the source frame that each output frame shows
    mel_starts: I32  # (n,) first mel column that each output frame hears; may be negative or past the end

    def __len__(self) -> int:
        return len(self.source_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Whose frames these are and how soon they are wanted, for a generator that several requests share."""

    request: str = ""
    """Requests get equal shares; "" is a request of its own."""
    first_frame: int = 0
    """The output frame that the first of them is: a request's first frames go before other requests' later ones."""
    priority: int = 0
    """The class, served before those of higher numbers."""
    due_in_s: float | None = None
    """Seconds from now by which they are wanted; inside a class the earliest goes first. Never a reason to fail."""


@dataclass(frozen=True, slots=True)
class AudioPacket:
    """One encoded AAC packet; times in units of 1/sample_rate. The first packet's pts is minus the encoder's delay."""

    pts: int
    duration: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What a muxer must know of the AAC stream before its first packet."""

    sample_rate_hz: int
    layout: str
    extradata: bytes
    bit_rate_bps: int


@dataclass(frozen=True, slots=True, eq=False)
class VoiceChunk:
    """The next stretch of a voice: mel columns and AAC packets that are now final.

    Chunks come in order. ``duration_s`` counts the voice heard so far, exactly; on the last chunk it is the whole.
    """

    mel: F32  # (80, n)
    packets: tuple[AudioPacket, ...]
    audio_format: AudioFormat
    duration: Fraction
    is_last: bool
    spent_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class SegmentTask:
    """All that a renderer needs for one segment besides the face input: rendering is a pure function of it."""

    segment: Segment
    boxes: I32  # (n, 4) x1 y1 x2 y2 per output frame, NO_BOX where there is no face
    mel: F32  # (80, m): the columns that this segment hears
    mel_starts: I32  # (n,) into ``mel``
    packets: tuple[AudioPacket, ...]
    audio_format: AudioFormat


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """The encoded bytes of one segment, its share of the voice included."""

    number: int
    first_frame: int
    frame_count: int
    data: bytes
    timings_s: dict[str, float] = field(default_factory=dict)
