"""End to end, stage by stage: a voice of so many seconds with a still and with a video, cold and warm."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lipsync.bench.media import moving, read_face, resized, still, voice_of
from lipsync.core import Fragment, Source
from lipsync.media.decode import FrameReader
from lipsync.pipeline import Report
from lipsync.service import LipsyncService
from lipsync.voice.voice import Waveform

SIZE = (1280, 720)
CLIP_FRAMES = 250


def measure_stages(
    *, device: str, checkpoint: str | None, face: str | None, audio: str | None, seconds: float, cache: str
) -> dict[str, Any]:
    """Cold is the first request of a service that has just started, detection and its model included; warm is the same
    request again, all boxes known. Raises the errors of ``LipsyncService`` and its calls."""
    picture = resized(read_face(face), *SIZE)
    voice = voice_of(audio, seconds=seconds)
    faces = {
        "still, 720p": (still(picture), 1),
        "video, 720p": (moving(picture, frames=CLIP_FRAMES, gop=CLIP_FRAMES), CLIP_FRAMES),
    }
    found: dict[str, Any] = {"seconds": seconds, "checkpoint": checkpoint or "packaged", "cases": []}
    for name, (data, source_frames) in faces.items():
        about = {"face": name, "source_frames": source_frames}
        started = time.perf_counter()
        with LipsyncService(checkpoint, device, compile_cache=cache) as service:
            found["service_start_s"] = round(time.perf_counter() - started, 2)
            found["cases"].append(about | {"state": "cold"} | _one(service, data, voice))
            service.preload_video_cache(data)  # also what the first request did not get to
            found["cases"].append(about | {"state": "warm"} | _one(service, data, voice))
    return found


def _one(service: LipsyncService, face: Source, voice: Waveform) -> dict[str, Any]:
    report = Report()
    before, all_before = service.engine.counts, time.process_time()
    with _cpu_by_stage() as cpu:
        fragments = asyncio.run(_all(service, face, voice, report))
    cpu_s = time.process_time() - all_before
    seconds = float(report.frame_count / report.fps)
    return {
        "frames": report.frame_count,
        "bytes": sum(len(one.data) for one in fragments),
        "total_s": round(report.total_s, 3),
        "first_fragment_s": round(report.first_fragment_s, 3),
        "real_time_factor": round(report.total_s / seconds, 4),
        "stage_s": {stage: round(spent, 3) for stage, spent in sorted(report.stage_s.items())},
        "cpu_s": round(cpu_s, 3),
        "stage_cpu_s": {stage: round(spent, 3) for stage, spent in sorted(cpu.items())}
        | {"other": round(cpu_s - sum(cpu.values()), 3)},
        "engine_batches": service.engine.counts.batches - before.batches,
    }


async def _all(service: LipsyncService, face: Source, voice: Waveform, report: Report) -> list[Fragment]:
    return [one async for one in service.fragments(service.job(face, voice), report=report)]


@contextmanager
def _cpu_by_stage() -> Iterator[dict[str, float]]:
    """The processor's time by stage of what happens inside: the functions of the stages are watched meanwhile.

    Threads that a library starts for itself are not seen, and land in what is left over.
    """
    from lipsync import local, render
    from lipsync.engine import Engine

    spent: dict[str, float] = {}
    lock = threading.Lock()

    def add(stage: str, seconds: float) -> None:
        with lock:
            spent[stage] = spent.get(stage, 0.0) + seconds

    watched: list[tuple[Any, str, str]] = [
        (local.LocalStages, "_open_face", "open"),
        (local, "detect_chunk", "detect"),
        (local, "voice_chunks", "voice"),
        (render, "_decode", "decode"),
        (render, "_crop", "crop"),
        (render.Renderer, "_finish", "paste and encode"),
        (Engine, "draw", "generate"),
        (Engine, "stage", "generate"),
        (FrameReader, "__init__", "decode"),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in watched]
    for owner, name, stage in watched:
        watch = _timed_items if name == "voice_chunks" else _timed
        setattr(owner, name, watch(getattr(owner, name), stage, add))
    try:
        yield spent
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _timed(work: Callable[..., Any], stage: str, add: Callable[[str, float], None]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.thread_time()
        try:
            return work(*args, **kwargs)
        finally:
            add(stage, time.thread_time() - started)

    return timed


def _timed_items(work: Callable[..., Any], stage: str, add: Callable[[str, float], None]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items = work(*args, **kwargs)
        while True:
            started = time.thread_time()
            item = next(items, None)
            add(stage, time.thread_time() - started)
            if item is None:
                return
            yield item

    return timed
