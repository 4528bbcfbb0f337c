"""What each output frame shows and hears, and how the work is cut: the timeline, its segments, and runs of segments.

Pure arithmetic on exact fractions: no pixels, no sound. The sync modes follow ``docs/options.md``; the reference's
own chunk rule (``compat="reference"``) follows sections d.1 and d.3 of its fact table, restated in ``docs/compat.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from lipsync.core import I32, Index, Segment, VideoInfo
from lipsync.errors import InvalidOption, LimitExceeded
from lipsync.media.rate import steady_fps
from lipsync.options import Limits, Options

MEL_COLUMNS_PER_S = 80
MEL_WINDOW = 16
IMAGE_FPS = Fraction(25)


def _knob(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How work is cut and how much of it is under way at once. Never changes a frame, only when it is made.

    Raises InvalidOption where a number would let nothing be done.
    """

    segment_frames: tuple[int, ...] = _knob(
        (8, 24, 64, 128), "frames of the first segments, and of all from the last on"
    )
    segment_bytes: int = _knob(96_000_000, "bytes of decoded frames that one segment may hold")
    window: int = _knob(8, "segments of one request in flight; as many segments' frames are held at most")
    shortest_chunk: int = _knob(25, "source frames that the first call to detection looks at; later ones look at more")
    longest_chunk: int = _knob(400, "source frames that a call to detection looks at, at most")
    waste: Fraction = _knob(Fraction(1, 10), "frames decoded twice, per frame put out, for the sake of parallel work")
    early: int = _knob(40, "frames more that may be decoded twice, so that a stream's first segments need not wait")

    def __post_init__(self) -> None:
        amounts = [*self.segment_frames, self.segment_bytes, self.window, self.shortest_chunk, self.longest_chunk]
        if not self.segment_frames or min(amounts) < 1 or self.waste < 0 or self.early < 0:
            raise InvalidOption(f"Segments, window and chunks need at least 1, waste and early 0, unlike {self}.")

    def longest_segment(self, width: int, height: int) -> int:
        return max(8, min(self.segment_frames[-1], self.segment_bytes // (width * height * 3 // 2)))


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of the voice the result has: at least (padded with silence) and at most (cut), in seconds."""

    at_least: Fraction | None = None
    at_most: Fraction | None = None
    ahead: Fraction = Fraction(0)
    """How much further than that the mouth hears, on top of a mel window."""
    shown_from: Fraction | None = None
    """When, by its file's timestamps, the face's first frame is shown; None for a still. A clip that is its own voice
    is heard from there on."""


class Timeline:
    """For each output frame: its source frame and the first column of its mel window.

    ``fps`` is the output's, ``own_fps`` the face input's (25 for an image). ``grid`` is the face clip at the constant
    rate ``fps``: entry j is the source frame on show in the middle of the clip's j-th output interval, so that a
    variable rate neither drifts nor jitters and a constant rate maps one to one even where timestamps are rounded to
    milliseconds. A still (or ``static``) has a grid of one.
    """

    def __init__(self, index: Index, video: VideoInfo, options: Options, *, is_image: bool, limits: Limits) -> None:
        self.options = options
        self.own_fps = IMAGE_FPS if is_image else _own_fps(index, video, options, limits)
        self.fps = self.own_fps if options.fps is None else options.fps
        if not (limits.min_fps <= self.fps <= limits.max_fps):
            raise LimitExceeded(
                f"The output would have {float(self.fps):g} frames per second; {limits.min_fps:g} to "
                f"{limits.max_fps:g} are allowed. Ask for another rate with fps."
            )
        self._shift = Fraction(options.audio_offset_ms) / 1000
        self.is_still = index.is_still or options.static or is_image
        self.grid = np.zeros(1, np.int32) if self.is_still else self._constant_rate(index)
        self._shown_from = int(index.pts_ticks[0]) * index.time_base

    def _constant_rate(self, index: Index) -> I32:
        if self.options.compat == "reference":
            return np.arange(len(index), dtype=np.int32)
        count = max(1, round(index.duration * self.fps))
        ticks_per_half = 1 / (2 * self.fps * index.time_base)
        first = int(index.pts_ticks[0])
        middles = np.array([first + math.floor((2 * j + 1) * ticks_per_half) for j in range(count)], np.int64)
        shown = np.searchsorted(index.pts_ticks, middles, side="right") - 1
        return np.clip(shown, 0, len(index) - 1).astype(np.int32)

    @property
    def span(self) -> Span:
        """What the sync mode asks of the voice: cut_off cuts it to the clip, silence pads it to the clip."""
        clip = len(self.grid) / self.fps
        if self.is_still:
            return Span()
        if self.options.sync_mode == "cut_off":
            return Span(at_most=clip, ahead=max(Fraction(0), self._shift), shown_from=self._shown_from)
        at_least = clip if self.options.sync_mode == "silence" else None
        return Span(at_least=at_least, shown_from=self._shown_from)

    def frame_count(self, duration: Fraction, columns: int) -> int:
        """Output frames for a voice of that many seconds and mel columns (after ``span`` was applied to it)."""
        lasting = max(1, math.ceil(duration * self.fps))
        if self.options.compat != "reference":
            return lasting
        counted = _reference_count(self.fps, columns)
        # the mel of a voice that is cut goes on beyond its end
        return counted if self.span.at_most is None else min(counted, lasting)

    def frames_heard(self, columns: int) -> int:
        """How many leading output frames hear only columns below ``columns``."""
        last_start = columns - MEL_WINDOW
        # floor(80 (i/fps + shift)) <= last_start  <=>  80 (i/fps + shift) < last_start + 1
        bound = math.ceil((Fraction(last_start + 1, MEL_COLUMNS_PER_S) - self._shift) * self.fps)
        return max(0, bound - 1) if self.options.compat == "reference" else max(0, bound)

    @property
    def needs_whole_voice(self) -> bool:
        """Whether the first frame depends on the voice's length: remap's and the reference's do."""
        return not self.is_still and (self.options.sync_mode == "remap" or self.options.compat == "reference")

    def source_frames(self, first: int, stop: int, *, total: int | None) -> I32:
        """(stop − first,) int32: the source frame that each output frame shows. ``total`` is needed for remap only."""
        i = np.arange(first, stop, dtype=np.int64)
        size = len(self.grid)
        mode = "loop" if self.is_still else self.options.sync_mode
        if mode == "loop":
            j = i % size
        elif mode == "bounce":
            period = max(1, 2 * size - 2)
            j = i % period
            j = np.where(j < size, j, period - j)
        elif mode == "remap":
            if total is None:
                raise ValueError("remap needs the number of output frames")
            j = np.minimum(i * size // max(1, total), size - 1)
        else:
            j = np.minimum(i, size - 1)
        return self.grid[j].astype(np.int32)

    def mel_starts(self, first: int, stop: int, *, columns: int | None) -> I32:
        """(stop − first,) int32: first mel column heard by each output frame; may be negative or past the end.

        ``columns`` is the voice's whole number of mel columns, needed by the reference's rule for the last chunk.
        """
        if self.options.compat == "reference":
            per_frame = MEL_COLUMNS_PER_S / float(self.fps)  # a float there too: its rounding is part of the rule
            starts = [math.floor(i * per_frame + MEL_COLUMNS_PER_S * float(self._shift)) for i in range(first, stop)]
            if columns is not None:
                starts = [min(start, max(0, columns - MEL_WINDOW)) for start in starts]
            return np.array(starts, np.int32)
        shift = self._shift
        return np.array([math.floor(MEL_COLUMNS_PER_S * (i / self.fps + shift)) for i in range(first, stop)], np.int32)


def _own_fps(index: Index, video: VideoInfo, options: Options, limits: Limits) -> Fraction:
    """The clip's frames' own rate within the limits; the reference goes by the headers' average."""
    if options.compat == "reference":
        return video.fps
    return min(max(steady_fps(index, video.fps), Fraction(limits.min_fps)), Fraction(limits.max_fps))


def _reference_count(fps: Fraction, columns: int) -> int:
    """Chunks that the reference makes of T columns: every i with int(i·80/fps)+16 <= T, and one more."""
    per_frame = MEL_COLUMNS_PER_S / float(fps)
    count = 0
    while int(count * per_frame) + MEL_WINDOW <= columns:
        count += 1
    return count + 1


class SegmentCutter:
    """Cuts the timeline into segments as it becomes known: short ones first, ends moved back to keyframes.

    A segment that ends where the next one can start decoding costs nothing twice, so an end is moved to the last
    keyframe of the segment's later half where there is one.
    """

    def __init__(self, timeline: Timeline, index: Index, *, tuning: Tuning, longest: int) -> None:
        self._timeline = timeline
        self._index = index
        self._tuning = tuning
        self._longest = longest
        self._number = 0
        self.first_frame = 0

    def cut(self, stop: int, *, total: int | None, columns: int | None) -> Iterator[Segment]:
        """Full segments that end at or before output frame ``stop``; all of them, the short rest included, once
        ``total`` (the number of output frames) is known and equals ``stop``."""
        while self.first_frame < stop:
            wanted = self._next_length()
            if self.first_frame + wanted > stop and total != stop:
                return
            end = min(self.first_frame + wanted, stop)
            sources = self._timeline.source_frames(self.first_frame, end, total=total)
            if end != stop or total is None:
                sources = sources[: self._snapped(sources)]
            end = self.first_frame + len(sources)
            starts = self._timeline.mel_starts(self.first_frame, end, columns=columns)
            yield Segment(self._number, self.first_frame, sources, starts)
            self._number += 1
            self.first_frame = end

    def _next_length(self) -> int:
        lengths = self._tuning.segment_frames
        return min(lengths[min(self._number, len(lengths) - 1)], self._longest)

    def _snapped(self, sources: I32) -> int:
        if self._timeline.is_still:
            return len(sources)
        for length in range(len(sources) - 1, len(sources) // 2, -1):
            starts_scene = sources[length] == sources[length - 1] + 1
            if starts_scene and self._index.is_key[sources[length]]:
                return length
        return len(sources)


def falls(sources: I32) -> bool:
    """Whether source frames are shown backwards: none rises, and the last is below the first."""
    return bool((np.diff(sources) <= 0).all() and sources[-1] < sources[0])


def goes_down(run: Sequence[I32]) -> bool:
    """Whether a run's segments are shown backwards, each lower than the one before; the last may turn at the bottom."""
    lowest = [int(sources.min()) for sources in run]
    return len(run) > 1 and falls(run[0]) and all(after < before for before, after in pairwise(lowest))


class RunPlanner:
    """Decides where independent decoding may start anew: a *run* is decoded by one worker in one pass.

    Starting at frame n costs the frames from the keyframe before n once more. A new run starts only while all that
    was decoded twice stays within ``waste`` of all that was put out, so that a clip with one keyframe is decoded once
    and not once for each segment. Where source frames fall (``bounce``) the worker begins at the run's end; a run never
    goes on where the direction turns. ``early`` frames more are spent at the start of a stream: a run is handed out
    when its last segment is known, and the first bytes should not wait for a whole group of pictures.
    """

    def __init__(self, index: Index, *, tuning: Tuning) -> None:
        self._index = index
        self._tuning = tuning
        self._frames_out = 0
        self._frames_twice = 0
        self._is_backwards: bool | None = None  # of the run, once it has a piece

    def ends_after(self, sources: I32, *, next_source: int) -> bool:
        """Whether the run ends with the piece of work that shows ``sources``, so that a new one starts at
        ``next_source``. Call once for each piece, in order."""
        self._frames_out += len(sources)
        backwards, last = falls(sources), int(sources[-1])
        goes_back = next_source < last or (backwards and next_source == last)
        if self._is_backwards is None:
            self._is_backwards = backwards
        if not backwards == goes_back == self._is_backwards:
            self._is_backwards = None
            return True
        starts_at = int(sources[-1]) if goes_back else next_source
        again = starts_at - self._index.keyframe_before(starts_at)
        if self._frames_twice + again > self._tuning.waste * self._frames_out + self._tuning.early:
            return False
        self._frames_twice += again
        self._is_backwards = None
        return True
