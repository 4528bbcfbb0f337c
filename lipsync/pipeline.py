"""The one pipeline: an async generator that is given its stages and yields a request's fragments in order.

In one process the stages are functions on executors (``lipsync.local``); on a cluster they are handles to replicas.
Here is only order, back-pressure and bookkeeping: no pixels, no sound.

    face ─▶ open_face ─▶ Timeline ──────────────┐
         ─▶ detect (runs of chunks) ─▶ Tracker ─┤
    voice ─▶ voice (chunks) ────────────────────┴─▶ tasks ─▶ runs ─▶ render (several in flight) ─▶ fragments in order
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, Protocol
from uuid import uuid4

from lipsync.core import Fragment, SegmentTask, VoiceChunk
from lipsync.faces.chunk import ChunkDetections
from lipsync.faces.given import tracks_to_json
from lipsync.flow import in_order
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.plan import RunPlanner, SegmentCutter, Span, Timeline, Tuning
from lipsync.progress import FaceTrack, Heard
from lipsync.render import FaceInput
from lipsync.voice.voice import Waveform


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a face, a voice, what is asked for, and what is allowed; and its place beside other requests."""

    face: Blob
    voice: Blob | Waveform
    options: Options = field(default_factory=Options)
    limits: Limits = field(default_factory=Limits)
    request: str = field(default_factory=lambda: uuid4().hex, compare=False)
    priority: int = 0


_HEAD_START_S = 0.25
"""Enough for the first segment to be drawn and encoded before the others want the same cores; where everything is busy
it takes longer, and then they wait no more."""


class Stages(Protocol):
    """The four kinds of work; where and how often each runs is the stages' own affair."""

    async def open_face(self, job: Job) -> FaceInput:
        """Probe and index the face input."""
        ...

    def voice(self, job: Job, span: Span) -> AsyncGenerator[VoiceChunk, None]:
        """The voice as mel columns and AAC packets, in order, padded and cut to ``span``."""
        ...

    def detect(self, job: Job, face: FaceInput, chunks: Sequence[range]) -> AsyncGenerator[ChunkDetections, None]:
        """Look at a run of source chunks, decoded in one pass; one result per chunk."""
        ...

    def render(
        self, job: Job, face: FaceInput, run: Sequence[SegmentTask], *, fps: Fraction
    ) -> AsyncGenerator[Fragment, None]:
        """Render a run of segments, decoded in one pass; one fragment per segment."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request has come, in frames; ``total`` is None while it is not known."""

    stage: Literal["detect", "render"]
    done: int
    total: int | None


@dataclass(slots=True)
class Report:
    """What a request came to; filled in while it runs. ``stage_s`` sums the time of all workers by stage."""

    fps: Fraction = Fraction(0)
    width: int = 0
    height: int = 0
    frame_count: int = 0
    """Output frames; where faces are only looked for, source frames."""
    mel_columns: int = 0
    searched_frames: int = 0
    """Source frames that were searched for faces: the detector looks at some of them, see ``detect_every``."""
    face_frames: int = 0
    """Source frames that have a face, of those searched or given."""
    first_fragment_s: float = 0.0
    """0 where there is none: faces are only looked for."""
    total_s: float = 0.0
    stage_s: dict[str, float] = field(default_factory=dict)

    def add(self, timings_s: dict[str, float]) -> None:
        for stage, spent_s in timings_s.items():
            self.stage_s[stage] = self.stage_s.get(stage, 0.0) + spent_s


async def synchronise(
    job: Job,
    stages: Stages,
    *,
    tuning: Tuning | None = None,
    progress: Callable[[Progress], None] | None = None,
    report: Report | None = None,
    soon: bool = False,
) -> AsyncGenerator[Fragment, None]:
    """Yield the request's fragments in order of time.

    Closing the generator, or cancelling the task that iterates it, stops all work of the request. Errors are those
    of ``lipsync.errors``. At most ``tuning.window`` segments are rendered ahead of the consumer. ``soon``: somebody
    waits for the first fragment, so it gets a head start, and ``tuning.early`` frames are decoded twice for it.
    """
    tuning, report, tell = tuning or Tuning(), report or Report(), progress or (lambda _: None)
    started = time.perf_counter()
    if not soon:
        tuning = replace(tuning, early=0)
    async with AsyncExitStack() as stack:
        face = await stages.open_face(job)
        report.add({"open": time.perf_counter() - started})
        timeline = Timeline(face.index, face.video, job.options, is_image=face.is_image, limits=job.limits)
        report.fps, report.width, report.height = timeline.fps, face.width, face.height
        heard = Heard(stages.voice(job, timeline.span), timeline)
        stack.push_async_callback(heard.aclose)
        track = FaceTrack(
            job.options,
            face,
            timeline,
            detect=lambda chunks: stages.detect(job, face, chunks),
            searched=lambda n: tell(Progress("detect", n, None)),
            tuning=tuning,
        )
        stack.push_async_callback(track.aclose)
        track.begin()
        runs = _runs(face, timeline, heard, track, tuning)
        rendered = in_order(
            runs,
            lambda run: stages.render(job, face, run, fps=timeline.fps),
            window=tuning.window,
            head_start_s=_HEAD_START_S if soon else 0.0,
        )
        async for fragment in await stack.enter_async_context(aclosing(rendered)):
            report.frame_count += fragment.frame_count
            report.add(fragment.timings_s)
            report.first_fragment_s = report.first_fragment_s or time.perf_counter() - started
            report.mel_columns = heard.columns
            report.searched_frames, report.face_frames = track.searched_frames, track.face_frames
            tell(Progress("render", report.frame_count, heard.frame_count))
            yield fragment
        report.add({"voice": heard.spent_s, "detect": track.spent_s})
        report.total_s = time.perf_counter() - started


async def find_track(
    job: Job,
    stages: Stages,
    *,
    tuning: Tuning | None = None,
    progress: Callable[[Progress], None] | None = None,
    report: Report | None = None,
) -> str:
    """The face's box in every source frame, as JSON text; see ``lipsync.faces.given``. Raises NoFace."""
    tuning, report, tell = tuning or Tuning(), report or Report(), progress or (lambda _: None)
    started = time.perf_counter()
    face = await stages.open_face(job)
    report.add({"open": time.perf_counter() - started})
    timeline = Timeline(face.index, face.video, job.options, is_image=face.is_image, limits=job.limits)
    report.fps, report.width, report.height = timeline.own_fps, face.width, face.height
    total = 1 if timeline.is_still else len(face.index)
    track = FaceTrack(
        job.options,
        face,
        timeline,
        detect=lambda chunks: stages.detect(job, face, chunks),
        searched=lambda n: tell(Progress("detect", n, total)),
        tuning=tuning,
    )
    try:
        boxes = await track.whole()
    finally:
        await track.aclose()
    report.frame_count, report.face_frames = len(boxes), track.face_frames
    report.searched_frames = track.searched_frames
    report.add({"detect": track.spent_s})
    report.total_s = time.perf_counter() - started
    return tracks_to_json(boxes, size=(face.width, face.height), fps=timeline.own_fps)


async def _runs(
    face: FaceInput, timeline: Timeline, heard: Heard, track: FaceTrack, tuning: Tuning
) -> AsyncGenerator[Sequence[SegmentTask], None]:
    """Group the segments' tasks into runs; see ``RunPlanner``. A run is handed out when its last task is known."""
    planner = RunPlanner(face.index, tuning=tuning)
    run: list[SegmentTask] = []
    async with aclosing(_tasks(face, timeline, heard, track, tuning)) as tasks:
        async for task in tasks:
            run.append(task)
            end = task.segment.first_frame + len(task.segment)
            upcoming = timeline.source_frames(end, end + 1, total=heard.frame_count)
            if planner.ends_after(task.segment.source_frames, next_source=int(upcoming[0])):
                yield run
                run = []
    if run:
        yield run


async def _tasks(
    face: FaceInput, timeline: Timeline, heard: Heard, track: FaceTrack, tuning: Tuning
) -> AsyncGenerator[SegmentTask, None]:
    """Each segment with what it needs, as soon as it was heard and its face was found."""
    longest = tuning.segment_frames[-1] if timeline.is_still else tuning.longest_segment(face.width, face.height)
    cutter = SegmentCutter(timeline, face.index, tuning=tuning, longest=longest)
    while await heard.more():
        track.expect(heard.frames_heard, total=heard.frame_count)
        if not heard.frames_heard or not await track.has_face():
            continue  # until more of the voice was heard
        columns = heard.columns if heard.is_complete else None
        for segment in cutter.cut(heard.frames_heard, total=heard.frame_count, columns=columns):
            boxes = await track.boxes(segment)
            yield heard.task(segment, boxes)
