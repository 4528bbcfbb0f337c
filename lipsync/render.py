"""Rendering: decode, crop, generate, paste, encode, for one run of segments of one face input.

A segment's render is a pure function of its arguments. Within a run the next segment is decoded and generated while
the current one is pasted and encoded, so two segments' frames are held and no more.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from lipsync.compose import Box, crop_face, draw_label, paste
from lipsync.core import (
    F32,
    I32,
    U8,
    AudioFormat,
    AudioPacket,
    Claim,
    Fragment,
    Index,
    MediaInfo,
    SegmentTask,
    VideoInfo,
)
from lipsync.errors import EngineError, NoVideoStream
from lipsync.flow import call, stoppable
from lipsync.media.decode import FrameReader, Geometry, StillCell
from lipsync.media.picture import Picture
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.plan import goes_down

T = TypeVar("T")


class Generator(Protocol):
    """Makes the patches of a segment; an engine in this process or a handle to one elsewhere."""

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        """Patches (n, 96, 96, 3) uint8 BGR for n output frames.

        ``crops`` (C, 96, 96, 3) uint8 BGR are unique; ``crop_index`` (n,) int32 says which one each frame shows;
        ``mel`` (80, T) float32; ``mel_starts`` (n,) int32, where columns outside [0, T) are silence. ``claim`` says
        whose frames they are and how soon they are wanted; it never changes a patch.
        """
        ...


class Encode(Protocol):
    """Turns a segment's pictures and packets into the bytes of a fragment."""

    def __call__(
        self,
        pictures: Iterable[Picture],
        *,
        first_frame: int,
        fps: Fraction,
        packets: Sequence[AudioPacket],
        audio_format: AudioFormat,
        options: Options,
        pixel_aspect: Fraction,
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class FaceInput:
    """A face input that was probed and indexed: what decoding needs to know besides its bytes."""

    blob: Blob
    info: MediaInfo
    index: Index
    geometry: Geometry
    width: int
    height: int
    still: StillCell = field(default_factory=StillCell, compare=False, repr=False)

    @classmethod
    def of(cls, blob: Blob, info: MediaInfo, index: Index, geometry: Geometry) -> FaceInput:
        """Width and height are those after ``geometry``. Raises InvalidOption where its crop leaves nothing."""
        if info.video is None:
            raise NoVideoStream("The face input has no picture. Send an image or a video.")
        size = (info.video.width, info.video.height) if info.kind == "image" else geometry.size(info.video)
        return cls(blob, info, index, geometry, *size)

    @property
    def is_image(self) -> bool:
        return self.info.kind == "image"

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height of a pixel, as it is to be shown."""
        return self.geometry.pixel_aspect(self.video)

    @property
    def video(self) -> VideoInfo:
        """The picture's description; a face input that was probed always has one."""
        if self.info.video is None:
            raise NoVideoStream("The face input has no picture. Send an image or a video.")
        return self.info.video

    def open(self, limits: Limits) -> FrameReader:
        return FrameReader(self.blob, self.info, self.index, geometry=self.geometry, limits=limits, still=self.still)


@dataclass(slots=True)
class _Prepared:
    """A segment between its generation and its encoding."""

    task: SegmentTask
    pictures: dict[int, Picture]
    patches: U8  # (boxed frames, 96, 96, 3)
    timings_s: dict[str, float]


class Renderer:
    """Renders runs of segments with CPU work on ``executor`` and patches from ``generator``."""

    def __init__(self, generator: Generator, executor: Executor, *, encode: Encode) -> None:
        self._generator = generator
        self._executor = executor
        self._encode = encode

    async def render(
        self,
        face: FaceInput,
        run: Sequence[SegmentTask],
        *,
        fps: Fraction,
        options: Options,
        limits: Limits,
        claim: Claim,
    ) -> AsyncGenerator[Fragment, None]:
        """One fragment per task, in order, for the request that ``claim`` names. Closing the iterator stops the work
        within a frame's time.

        A run that is shown backwards is worked on from its end, so that one pass decodes it; its fragments, which are
        small beside its frames, are held until the first is there.
        """
        is_backwards = goes_down([task.segment.source_frames for task in run])
        order, held = (run[::-1] if is_backwards else run), list[Fragment]()
        stop = threading.Event()
        reader = await self._call(partial(face.open, limits), stop)
        upcoming = asyncio.create_task(self._prepare(reader, order[0], claim, stop))
        try:
            for n in range(len(order)):
                prepared = await upcoming
                if n + 1 < len(order):
                    upcoming = asyncio.create_task(self._prepare(reader, order[n + 1], claim, stop))
                fragment = await self._call(partial(self._finish, prepared, face, fps, options, stop), stop)
                if is_backwards:
                    held.append(fragment)
                else:
                    yield fragment
        finally:
            stop.set()
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
            await self._call(reader.close, stop)
        for fragment in reversed(held):
            yield fragment

    async def _call(self, work: Callable[[], T], stop: threading.Event) -> T:
        return await call(self._executor, work, stop=stop)

    async def _prepare(self, reader: FrameReader, task: SegmentTask, claim: Claim, stop: threading.Event) -> _Prepared:
        started = time.perf_counter()
        pictures = await self._call(partial(_decode, reader, task, stop), stop)
        decoded = time.perf_counter()
        crops, crop_index, boxed = await self._call(partial(_crop, pictures, task), stop)
        cropped = time.perf_counter()
        patches = np.empty((0, 96, 96, 3), np.uint8)
        if len(crop_index):
            first = replace(claim, first_frame=task.segment.first_frame + int(boxed[0]))
            patches = await self._generator.generate(crops, crop_index, task.mel, task.mel_starts[boxed], claim=first)
            _check_patches(patches, len(crop_index))
        generated = time.perf_counter()
        timings = {"decode": decoded - started, "crop": cropped - decoded, "generate": generated - cropped}
        return _Prepared(task, pictures, patches, timings)

    def _finish(
        self, prepared: _Prepared, face: FaceInput, fps: Fraction, options: Options, stop: threading.Event
    ) -> Fragment:
        task = prepared.task
        started = time.perf_counter()
        clock = _Clock()
        frames = clock.timed(stoppable(_compose(prepared, options), stop))
        data = self._encode(
            frames,
            first_frame=task.segment.first_frame,
            fps=fps,
            packets=task.packets,
            audio_format=task.audio_format,
            options=options,
            pixel_aspect=face.pixel_aspect,
        )
        timings = prepared.timings_s | {"paste": clock.spent_s, "encode": time.perf_counter() - started - clock.spent_s}
        return Fragment(task.segment.number, task.segment.first_frame, len(task.segment), data, timings)


def _check_patches(patches: U8, count: int) -> None:
    """What comes back may come from another process."""
    if patches.shape != (count, 96, 96, 3) or patches.dtype != np.uint8:
        raise EngineError(
            f"The generator answered {patches.dtype} {patches.shape} for {count} frames; (n, 96, 96, 3) uint8 was due."
        )


class _Clock:
    """Sums the wall time spent inside an iterator, to tell pasting from encoding."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self.spent_s += time.perf_counter() - started
            if item is None:
                return
            yield item


def _decode(reader: FrameReader, task: SegmentTask, stop: threading.Event) -> dict[int, Picture]:
    """Each source frame that the segment shows, decoded once."""
    pictures: dict[int, Picture] = {}
    for piece in ascending_pieces(task.segment.source_frames):
        wanted = [frame for frame in piece if frame not in pictures]
        if wanted:
            pictures.update(zip(wanted, stoppable(reader.read(wanted), stop), strict=True))
    return pictures


def ascending_pieces(source_frames: I32) -> list[list[int]]:
    """The frames in the order of showing, as maximal stretches that rise or fall, each given in ascending order.

    A loop's wrap and a bounce's turn split a segment, so that a decoder passes each stretch once.
    """
    pieces: list[list[int]] = []
    direction = 0
    for frame in source_frames.tolist():
        step = 0 if not pieces else np.sign(frame - pieces[-1][-1])
        if not pieces or (step and direction and step != direction):
            pieces.append([frame])
            direction = 0
        elif step:
            pieces[-1].append(frame)
            direction = step
    return [sorted(piece) for piece in pieces]


def _crop(pictures: dict[int, Picture], task: SegmentTask) -> tuple[U8, I32, I32]:
    """Unique crops (C, 96, 96, 3), for each frame with a box which crop it shows, and which frames have a box."""
    boxed = np.flatnonzero(task.boxes[:, 2] > 0).astype(np.int32)
    unique: dict[tuple[int, Box], int] = {}
    crops: list[U8] = []
    crop_index = np.empty(len(boxed), np.int32)
    for at, n in enumerate(boxed):
        key = (int(task.segment.source_frames[n]), as_box(task.boxes[n]))
        if key not in unique:
            unique[key] = len(crops)
            crops.append(crop_face(pictures[key[0]], key[1]))
        crop_index[at] = unique[key]
    return np.stack(crops) if crops else np.empty((0, 96, 96, 3), np.uint8), crop_index, boxed


def _compose(prepared: _Prepared, options: Options) -> Iterator[Picture]:
    patch_of = iter(prepared.patches)
    sources = prepared.task.segment.source_frames.tolist()
    last_use = {source: n for n, source in enumerate(sources)}
    for n, (source, row) in enumerate(zip(sources, prepared.task.boxes, strict=True)):
        # let go of here, while the next segment's pictures come in
        picture = prepared.pictures.pop(source) if n == last_use[source] else prepared.pictures[source]
        if row[2] > 0:
            picture = paste(picture, as_box(row), next(patch_of), options)
        yield draw_label(picture) if options.label else picture


def as_box(row: I32) -> Box:
    """One row of a track as x1, y1, x2, y2."""
    x1, y1, x2, y2 = (int(edge) for edge in row)
    return x1, y1, x2, y2
