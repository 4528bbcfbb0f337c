"""The stages that lie before a stream's first bytes, one after the other in one process: what they cost at least."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from functools import cache

import numpy as np
import torch

from lipsync.faces.track import Tracker
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.pipeline import Job
from lipsync.plan import SegmentCutter, Timeline, Tuning
from lipsync.progress import Heard
from lipsync.service import LipsyncService


@cache
def _service() -> LipsyncService:
    torch.set_num_threads(1)  # as a Generator of one core has it
    return LipsyncService(workers=1)


def stages_s(face: bytes, voice: bytes) -> float:
    """Seconds of opening, hearing the first chunk, looking (at a still, or a video's first chunk), and rendering eight
    frames, in turn."""
    job = Job(Blob.of(face, limit_bytes=10**9), Blob.of(voice, limit_bytes=10**9))
    return asyncio.run(_stages_s(job, _service().stages))


async def _stages_s(job: Job, stages: LocalStages) -> float:
    began = time.perf_counter()
    face = await stages.open_face(job)
    timeline = Timeline(face.index, face.video, job.options, is_image=face.is_image, limits=job.limits)
    heard = Heard(stages.voice(job, timeline.span), timeline)
    await heard.more()
    looked_at = range(1 if face.is_image else min(len(face.index), Tuning().shortest_chunk))
    tracker = Tracker(len(looked_at), (face.width, face.height), face.index, job.options)
    async with aclosing(stages.detect(job, face, [looked_at])) as found:
        async for detections in found:
            boxes = tracker.feed(detections)
    boxes = np.concatenate([boxes, tracker.finish()])
    cutter = SegmentCutter(timeline, face.index, tuning=Tuning(), longest=128)
    segment = next(iter(cutter.cut(heard.frames_heard, total=heard.frame_count, columns=None)))
    task = heard.task(segment, boxes[segment.source_frames])
    async with aclosing(stages.render(job, face, [task], fps=timeline.fps)) as fragments:
        async for _ in fragments:
            pass
    took_s = time.perf_counter() - began
    await heard.aclose()
    return took_s
