"""Looking for faces in one stretch of source frames, pixels in and detections out; stretches may run in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lipsync.core import F32, U8, Detection, Index
from lipsync.errors import EngineError, LipsyncError
from lipsync.faces.coarse import CoarseFirst, settles_early
from lipsync.faces.cut import THUMBNAIL_SIDE, is_cut, signature
from lipsync.faces.detector import Detector
from lipsync.options import Options

DETECTION_SIDE = 640
"""Faces are looked for on frames whose longer side is at most this many pixels."""


class FullFrame(Protocol):
    def bgr(self) -> U8: ...


class SmallFrame(Protocol):
    def small(self, max_side: int) -> U8: ...


class FrameSource(Protocol):
    """The part of a FrameReader that detection needs."""

    def read(self, frames: Sequence[int]) -> Iterator[FullFrame]: ...

    def read_small(self, first: int, stop: int, *, max_side: int) -> Iterator[U8]: ...

    def glimpses(self, first: int, stop: int) -> Iterator[SmallFrame]: ...


@dataclass(frozen=True, slots=True)
class ChunkDetections:
    """What was seen in source frames first <= n < stop, in pixels of the full frame.

    ``anchors`` holds the frames that were looked at; where frame ``stop`` starts a scene, also that one.
    A number n in ``cuts`` (first < n <= stop) says that frame n starts a new scene.
    ``spent_s`` is what looking took, where it was timed.
    """

    first: int
    stop: int
    anchors: dict[int, list[Detection]]
    cuts: tuple[int, ...]
    spent_s: float = field(default=0.0, compare=False)


def source_chunks(frame_count: int, *, size: int, shortest: int | None = None) -> list[range]:
    """Source frames 0..frame_count cut into stretches of ``size``; the track does not depend on where they are cut.

    With ``shortest`` they grow from that length up to ``size``, each at most a quarter of what lies before it: the
    first boxes come soon, and a voice that ends early has not had much more looked at than it shows.
    """
    chunks: list[range] = []
    first, length = 0, shortest or size
    while first < frame_count:
        chunks.append(range(first, min(first + length, frame_count)))
        first += length
        length = size if shortest is None else min(size, max(shortest, first // 4))
    return chunks


def detect_chunk(
    reader: FrameSource,
    first: int,
    stop: int,
    *,
    detector: Detector,
    options: Options,
    index: Index,
    size: tuple[int, int],
    batch_size: int = 16,
) -> ChunkDetections:
    """Detections at the anchors of source frames first <= n < stop, and the scene cuts among them.

    Anchors are every ``options.detect_every``-th source frame, both sides of a cut, and the clip's last frame. Frame
    ``stop`` is decoded too, so that a cut at the border is seen here and nowhere else; going on from there costs a
    reader nothing, while the frame before ``first`` would often cost it a group of pictures. ``size`` is the
    full frame's (width, height) after geometry; ``batch_size`` bounds the frames held at once.
    """
    if settles_early(options, index):
        detector = CoarseFirst(detector)
    looker = _Looker(detector, size, batch_size)
    if options.compat == "reference":
        for n, frame in enumerate(_reference_frames(reader, first, stop, detector), first):
            looker.add(n, frame)
        return ChunkDetections(first, stop, looker.finish(), ())
    cuts = _look_at_anchors(reader, first, stop, looker, every=options.detect_every, last=len(index) - 1)
    return ChunkDetections(first, stop, looker.finish(), cuts)


def _reference_frames(reader: FrameSource, first: int, stop: int, detector: Detector) -> Iterator[U8]:
    if detector.name != "s3fd":
        return reader.read_small(first, stop, max_side=DETECTION_SIDE)
    return (picture.bgr() for picture in reader.read(range(first, stop)))


def _look_at_anchors(
    reader: FrameSource, first: int, stop: int, looker: _Looker, *, every: int, last: int
) -> tuple[int, ...]:
    cuts: list[int] = []
    before: tuple[SmallFrame, F32] | None = None
    for n, frame in enumerate(reader.glimpses(first, min(stop, last) + 1), first):
        mark = signature(frame.small(THUMBNAIL_SIDE))
        if before is not None and is_cut(before[1], mark):
            cuts.append(n)
            looker.add(n - 1, before[0].small(DETECTION_SIDE))
            looker.add(n, frame.small(DETECTION_SIDE))
        if n < stop and (n % every == 0 or n == last):
            looker.add(n, frame.small(DETECTION_SIDE))
        before = frame, mark
    return tuple(cuts)


class _Looker:
    """Gathers frames into batches for a detector and scales what it finds to the full frame."""

    def __init__(self, detector: Detector, size: tuple[int, int], batch_size: int) -> None:
        self._detector = detector
        self._size = size
        self._batch_size = batch_size
        self._waiting: dict[int, U8] = {}
        self._found: dict[int, list[Detection]] = {}

    def add(self, n: int, frame: U8) -> None:
        """Looks at frame ``n``, once however often it is added."""
        if n in self._found or n in self._waiting:
            return
        self._waiting[n] = np.ascontiguousarray(frame)
        if len(self._waiting) >= self._batch_size:
            self._look()

    def finish(self) -> dict[int, list[Detection]]:
        if self._waiting:
            self._look()
        return dict(sorted(self._found.items()))

    def _look(self) -> None:
        frames = list(self._waiting.values())
        height, width = frames[0].shape[:2]
        scale = self._size[0] / width, self._size[1] / height
        for n, faces in zip(self._waiting, self._detected(frames), strict=True):
            self._found[n] = [face.scaled(*scale) for face in faces]
        self._waiting.clear()

    def _detected(self, frames: list[U8]) -> list[list[Detection]]:
        try:
            found = self._detector.detect(frames)
        except LipsyncError:
            raise
        except Exception as error:
            raise EngineError(f"The face detector {self._detector.name} failed: {error}. Try another one.") from error
        if len(found) != len(frames):
            raise EngineError(
                f"The face detector {self._detector.name} answered for {len(found)} of {len(frames)} frames."
            )
        return found
