"""What a request knows so far: the voice that was heard and the face that was tracked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lipsync.core import F32, I32, AudioFormat, AudioPacket, Segment, SegmentTask, VoiceChunk
from lipsync.errors import FaceMissing, NoAudioStream, NoFace
from lipsync.faces.chunk import ChunkDetections, source_chunks
from lipsync.faces.given import given_track
from lipsync.faces.track import Tracker
from lipsync.flow import Ahead, in_order
from lipsync.media.mp4 import packets_between
from lipsync.options import Options
from lipsync.plan import MEL_WINDOW, RunPlanner, Timeline, Tuning
from lipsync.render import FaceInput


class Heard:
    """The voice so far: mel columns and packets as they arrive, and how much of the timeline they cover.

    What a segment was given, and no later one can hear, is forgotten.
    """

    def __init__(self, chunks: AsyncGenerator[VoiceChunk, None], timeline: Timeline) -> None:
        self._chunks = Ahead(chunks, ahead=2)
        self._timeline = timeline
        self._mel: F32 = np.empty((80, 0), np.float32)
        self._forgotten = 0  # columns before the first of _mel
        self._packets: list[AudioPacket] = []
        self._format: AudioFormat | None = None
        self._duration = Fraction(0)
        self.is_complete = False
        self.spent_s = 0.0

    async def more(self) -> bool:
        """Wait for the next chunk; False when there is none."""
        chunk = None if self.is_complete else await anext(self._chunks, None)
        if chunk is None:
            return False
        self._mel = np.concatenate([self._mel, chunk.mel], axis=1)
        self._packets.extend(chunk.packets)
        self.spent_s += chunk.spent_s
        self._format, self._duration, self.is_complete = chunk.audio_format, chunk.duration, chunk.is_last
        return True

    @property
    def columns(self) -> int:
        return self._forgotten + int(self._mel.shape[1])

    @property
    def frame_count(self) -> int | None:
        """Output frames of the whole result; None until the voice's end was heard."""
        return self._timeline.frame_count(self._duration, self.columns) if self.is_complete else None

    @property
    def frames_heard(self) -> int:
        """Leading output frames whose mel windows are known."""
        if self.frame_count is not None:
            return self.frame_count
        if self._timeline.needs_whole_voice:
            return 0
        # a negative audio_offset_ms lets a frame hear less than its own time; the voice may still end before it
        certain = math.floor(self._duration * self._timeline.fps)
        return min(certain, self._timeline.frames_heard(self.columns))

    def task(self, segment: Segment, boxes: I32) -> SegmentTask:
        """The segment with its share of the voice; its packets are handed out once. Call in order."""
        if self._format is None:
            raise NoAudioStream("The voice has no sound.")
        starts = segment.mel_starts
        low = min(max(0, int(starts.min())), self.columns)
        high = max(low, int(starts.max()) + MEL_WINDOW)
        stop = segment.first_frame + len(segment)
        taken, self._packets = packets_between(
            self._packets, self._format, until=None if stop == self.frame_count else stop / self._timeline.fps
        )
        mel = np.ascontiguousarray(self._mel[:, low - self._forgotten : high - self._forgotten])
        # windows never go back from one segment to the next
        self._mel, self._forgotten = self._mel[:, low - self._forgotten :], low
        return SegmentTask(segment, boxes, mel, (starts - low).astype(np.int32), tuple(taken), self._format)

    async def aclose(self) -> None:
        await self._chunks.aclose()


class FaceTrack:
    """The face's box for every source frame, looked for only as far as the timeline needs."""

    def __init__(
        self,
        options: Options,
        face: FaceInput,
        timeline: Timeline,
        *,
        detect: Callable[[Sequence[range]], AsyncGenerator[ChunkDetections, None]],
        searched: Callable[[int], None],
        tuning: Tuning,
    ) -> None:
        self._options, self._face, self._timeline, self._tuning = options, face, timeline, tuning
        self._searched = searched
        self._detect = detect
        self.searched_frames = 0
        self.spent_s = 0.0
        self._frame_count = 1 if timeline.is_still else len(face.index)
        self._wanted, self._starving, self._shows_no_more = 0, False, False
        self._demand = asyncio.Event()
        self._boxes: I32 = np.empty((0, 4), np.int32)
        self._settled = 0  # source frames of which it is known whether they have a face
        self._first_face: int | None = None
        self._detections: Ahead[ChunkDetections] | None = None
        # the tracker is not asked to fail: it may see frames that are never shown
        self._lenient = (
            replace(options, on_missing_face="passthrough") if options.on_missing_face == "error" else options
        )

    def expect(self, frames: int, *, total: int | None) -> None:
        """The timeline is now known up to output frame ``frames`` (its end where ``total`` is given)."""
        if total is not None and self._options.compat == "reference":
            self._frame_count = min(self._frame_count, total)  # it looks at no more frames than it puts out
        grid = self._timeline.grid
        whole = self._options.sync_mode == "remap"
        needed = int(grid.max()) if whole else int(grid[min(max(frames, 1), len(grid)) - 1])
        self._want(min(needed + 1, self._frame_count))
        self._shows_no_more = total is not None or self._wanted == self._frame_count

    async def has_face(self) -> bool:
        """Whether a source frame that is shown, as far as the timeline is known, has a face. Looks no further than
        that takes: what comes later may never be shown.

        Raises NoFace where the timeline shows no other source frames.
        """
        while self._first_face is None and self._settled < self._wanted:
            await self._look_further()
        if self._first_face is not None and self._first_face < self._wanted:
            return True
        if self._shows_no_more:
            raise self._no_face()
        return False

    async def boxes(self, segment: Segment) -> I32:
        """(n, 4) int32 boxes for a segment's frames, to be asked for once there is a face.

        Raises FaceMissing where this segment lacks one and that is asked for.
        """
        needed = int(segment.source_frames.max()) + 1
        while len(self._boxes) < needed:
            await self._look_further()
        boxes: I32 = self._boxes[segment.source_frames]
        if self._options.on_missing_face == "error" and (boxes[:, 2] <= 0).any():
            raise FaceMissing(self._say_missing(int(segment.source_frames[np.argmax(boxes[:, 2] <= 0)])))
        return boxes

    @property
    def face_frames(self) -> int:
        """Source frames known so far to have a face."""
        return int((self._boxes[:, 2] > 0).sum())

    async def whole(self) -> I32:
        """(N, 4) int32 boxes of every source frame."""
        self._want(self._frame_count)
        while len(self._boxes) < self._frame_count:
            await self._look_further()
        return self._boxes

    def _say_missing(self, frame: int) -> str:
        index = self._face.index
        at_s = float((int(index.pts_ticks[frame]) - int(index.pts_ticks[0])) * index.time_base)
        return (
            f"Source frame {frame} (at {at_s:.2f} s) has no face. Use on_missing_face=passthrough to leave such "
            "frames as they are, or previous to use the last box."
        )

    def _no_face(self) -> NoFace:
        if not self._are_given:
            return self._tracker.no_face(shown=self._wanted)
        return NoFace(
            f"The boxes given for the {self._wanted} source frames that are shown are all null: there is no face to "
            "work on. Give at least one box."
        )

    def begin(self) -> None:
        """Look for the first boxes now, beside the hearing of the voice: any timeline needs them."""
        if not self._are_given and self._options.compat != "reference":  # which looks no further than the voice lasts
            self._want(1)
            self._looking()

    @property
    def _are_given(self) -> bool:
        return self._options.box is not None or self._options.boxes is not None

    def _looking(self) -> Ahead[ChunkDetections]:
        if self._detections is None:
            size = (self._face.width, self._face.height)
            self._tracker = Tracker(self._frame_count, size, self._face.index, self._lenient)
            self._detections = Ahead(in_order(self._runs(), self._detect, window=2), ahead=1)
        return self._detections

    async def _look_further(self) -> None:
        if self._are_given:
            size = (self._face.width, self._face.height)
            count = 1 if self._timeline.is_still else len(self._face.index)
            self._boxes = given_track(self._lenient, count, size, self._face.index)[: self._frame_count]
            has_box = np.flatnonzero(self._boxes[:, 2] > 0)
            self._settled, self._first_face = len(self._boxes), int(has_box[0]) if len(has_box) else None
            return
        detections = self._looking()
        self._starving = True
        self._demand.set()
        chunk = await anext(detections, None)
        self._starving = False
        if chunk is None:
            final = self._tracker.finish()
        else:
            final = self._tracker.feed(chunk)
            self.searched_frames += chunk.stop - chunk.first
            self.spent_s += chunk.spent_s
            self._searched(self.searched_frames)
        self._boxes = np.concatenate([self._boxes, final])
        self._settled, self._first_face = self._tracker.settled, self._tracker.first_face

    async def _runs(self) -> AsyncGenerator[Sequence[range], None]:
        """Chunks to look at, in runs, each handed out once the timeline needs it."""
        planner = RunPlanner(self._face.index, tuning=self._tuning)
        tuning = self._tuning
        chunks = source_chunks(self._frame_count, size=tuning.longest_chunk, shortest=tuning.shortest_chunk)
        run: list[range] = []
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            run.append(chunk)
            shown = np.arange(chunk.start, chunk.stop, dtype=np.int32)
            if following is None or planner.ends_after(shown, next_source=following.start):
                while run[0].start >= self._wanted and not self._starving:
                    self._demand.clear()
                    await self._demand.wait()
                yield run
                run = []

    def _want(self, source_stop: int) -> None:
        self._wanted = max(self._wanted, source_stop)
        self._demand.set()

    async def aclose(self) -> None:
        if self._detections is not None:
            await self._detections.aclose()
