"""Reading a face input's frames by number, whatever it is: a still, an animation, or a video."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from lipsync.core import U8, Index, MediaInfo, VideoInfo
from lipsync.errors import NoVideoStream
from lipsync.media.container import WorkClock, media_errors
from lipsync.media.geometry import Geometry
from lipsync.media.picture import Picture
from lipsync.media.planes import FrameConverter, shrink
from lipsync.media.source import Blob
from lipsync.media.still import AnimationReader, decode_still
from lipsync.media.video import VideoFrames
from lipsync.options import Limits

__all__ = ["FrameReader", "Geometry", "Glimpse", "StillCell", "small_size"]


def small_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Width and height of the frames that ``read_small`` gives for shown frames of this size."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


class StillCell:
    """Where the readers of one image keep its picture, so that it is prepared once. Pickles without the picture."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._picture: Picture | None = None

    def picture(self, prepare: Callable[[], Picture]) -> Picture:
        """The picture that is kept; the first caller prepares it while others wait."""
        with self._lock:
            if self._picture is None:
                self._picture = prepare()
            return self._picture

    def __reduce__(self) -> tuple[type[StillCell], tuple[()]]:
        return StillCell, ()


class Glimpse:
    """A source frame that is decoded but not yet converted: made small when, and as often as, it is asked for."""

    def __init__(self, size: tuple[int, int], shrink: Callable[[tuple[int, int]], U8]) -> None:
        self._size, self._shrink = size, shrink

    def small(self, max_side: int) -> U8:
        """(h, w, 3) BGR, the longer side scaled down to ``max_side``; see ``small_size``. Raises UnreadableMedia."""
        return self._shrink(small_size(*self._size, max_side))


class FrameReader:
    """The frames of one face input, in pictures or small. A context manager, for one thread at a time.

    Between calls the decoder stays where it is, and the last picture is kept: reading on costs no seek, and a
    still is decoded once: for all readers that are given the same ``still`` cell.
    """

    def __init__(
        self,
        blob: Blob,
        info: MediaInfo,
        index: Index,
        *,
        geometry: Geometry | None = None,
        limits: Limits,
        threads: int = 1,
        still: StillCell | None = None,
    ) -> None:
        if info.video is None:
            raise NoVideoStream("The face input has no picture. Send an image or a video as the face.")
        self._index = index
        geometry = geometry or Geometry()
        self.size = (info.video.width, info.video.height) if info.kind == "image" else geometry.size(info.video)
        """Width and height of the pictures."""
        # faces are looked for as people look: pixels that are shown wide or high are made square
        aspect = geometry.pixel_aspect(info.video)
        self._square = (round(self.size[0] * aspect), self.size[1])
        self._clock = WorkClock(limits.wall_clock_s(info.video.duration_s))
        self._frames: _Frames
        if info.kind == "image":
            self._frames = _StillFrames(blob, info.container, limits, still or StillCell())
        elif info.kind == "animation":
            reader = AnimationReader(blob, info.container, limits, clock=self._clock)
            self._frames = _AnimationFrames(reader, info.video, geometry)
        else:
            frames = VideoFrames(blob, info, index, clock=self._clock, threads=threads)
            self._frames = _VideoFrames(frames, FrameConverter(info.video, geometry))

    def read(self, frames: Sequence[int]) -> Iterator[Picture]:
        """Pictures of the ascending, unique source frame numbers, in one pass.

        Raises TruncatedMedia, UnreadableMedia, DecodeTimeout while iterating; ValueError for numbers out of order.
        """
        self._check(frames)
        self._clock.restart()
        for number in frames:
            yield self._frames.picture(int(number))

    def glimpses(self, first: int, stop: int) -> Iterator[Glimpse]:
        """Source frames ``first``…``stop - 1``, each converted only as far as it is asked for. Raises as ``read``."""
        self._check(range(first, stop))
        self._clock.restart()
        for number in range(first, stop):
            yield Glimpse(self._square, self._frames.shrinking(number))

    def read_small(self, first: int, stop: int, *, max_side: int) -> Iterator[U8]:
        """(h, w, 3) BGR of source frames ``first``…``stop - 1``, the longer side scaled down to ``max_side``.

        Their size is ``small_size(*reader.size, max_side)`` where pixels are square; where they are not, these are.
        Raises as ``read`` does.
        """
        return (glimpse.small(max_side) for glimpse in self.glimpses(first, stop))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def decoded_count(self) -> int:
        """Frames decoded so far, wanted or not."""
        return self._frames.decoded_count

    def close(self) -> None:
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, frames: Sequence[int]) -> None:
        last = -1
        for number in frames:
            if not last < number < len(self._index):
                raise ValueError(f"frame {number} after {last} of {len(self._index)}: numbers must ascend and exist")
            last = number


class _Frames(Protocol):
    """One kind of face input: its frames by number."""

    @property
    def decoded_count(self) -> int: ...
    def picture(self, number: int) -> Picture: ...
    def shrinking(self, number: int) -> Callable[[tuple[int, int]], U8]: ...
    def close(self) -> None: ...


class _StillFrames:
    """The one picture of an image, prepared at its first use."""

    def __init__(self, blob: Blob, format: str, limits: Limits, cell: StillCell) -> None:
        self._blob, self._format, self._limits = blob, format, limits
        self._cell = cell
        self.decoded_count = 0

    def picture(self, number: int) -> Picture:
        return self._cell.picture(self._prepare)

    def _prepare(self) -> Picture:
        self.decoded_count = 1
        return Picture.from_bgr(decode_still(self._blob, self._format, self._limits))

    def shrinking(self, number: int) -> Callable[[tuple[int, int]], U8]:
        return partial(shrink, self.picture(number).bgr())

    def close(self) -> None:
        self._cell = StillCell()


class _AnimationFrames:
    """Frames of an animated image; the last one is kept."""

    def __init__(self, reader: AnimationReader, info: VideoInfo, geometry: Geometry) -> None:
        self._reader, self._info, self._geometry = reader, info, geometry
        self._held: tuple[int, Picture] | None = None

    @property
    def decoded_count(self) -> int:
        return self._reader.decoded_count

    def picture(self, number: int) -> Picture:
        if self._held is None or self._held[0] != number:
            picture = Picture.from_bgr(self._reader.read(number))
            self._held = number, self._geometry.apply(picture, self._info)
        return self._held[1]

    def shrinking(self, number: int) -> Callable[[tuple[int, int]], U8]:
        return partial(shrink, self.picture(number).bgr())

    def close(self) -> None:
        self._held = None
        self._reader.close()


class _VideoFrames:
    """Frames of a video; the last picture is kept."""

    def __init__(self, frames: VideoFrames, converter: FrameConverter) -> None:
        self._frames, self._converter = frames, converter
        self._held: tuple[int, Picture] | None = None

    @property
    def decoded_count(self) -> int:
        return self._frames.decoded_count

    def picture(self, number: int) -> Picture:
        if self._held is None or self._held[0] != number:
            frame = self._frames.frame(number)
            with media_errors("convert the frame"):
                self._held = number, self._converter.picture(frame)
        return self._held[1]

    def shrinking(self, number: int) -> Callable[[tuple[int, int]], U8]:
        frame = self._frames.frame(number)
        with media_errors("convert the frame"):
            return self._converter.shrinking(frame)

    def close(self) -> None:
        self._held = None
        self._frames.close()
