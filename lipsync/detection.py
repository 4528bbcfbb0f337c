"""Finding the face of an input without rendering anything, and the detectors' weights files."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lipsync import pipeline
from lipsync.core import F32, I32, U8, Claim, Source
from lipsync.errors import EngineError
from lipsync.faces.detector import Detector, DetectorName, create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.own_loop import run_to_end
from lipsync.pipeline import Job, Progress
from lipsync.voice.voice import Waveform
from lipsync.weights import find_yunet

NO_VOICE = Waveform(np.zeros(0, np.float32), 16_000)
"""Stands in a job that only looks."""


def find_track(
    face: Source,
    options: Options | None = None,
    *,
    limits: Limits | None = None,
    yunet_path: str | os.PathLike[str] | None = None,
    s3fd_path: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
) -> str:
    """The face's box in every source frame, as the JSON text that ``Options.boxes`` comes from; no generator needed.

    Raises NoFace and the errors of reading the input.
    """
    limits = limits or Limits()
    job = Job(
        Blob.of(face, limit_bytes=max(limits.video_bytes, limits.image_bytes)), NO_VOICE, options or Options(), limits
    )
    detector = partial(detector_from_files, yunet_path, s3fd_path, device, 16)
    stages = LocalStages(_NoGenerator(), create_detector=detector, workers=2, cache_entries=0)
    try:
        return run_to_end(pipeline.find_track(job, stages, progress=progress))
    finally:
        stages.close()


class _NoGenerator:
    """Stands where nothing is rendered."""

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        raise EngineError("Nothing can be rendered here: these stages were made to look for faces.")


def detector_from_files(
    yunet_path: str | os.PathLike[str] | None,
    s3fd_path: str | os.PathLike[str] | None,
    device: str,
    face_det_batch_size: int,
    name: DetectorName,
) -> Detector:
    weights = None
    if name == "s3fd" and s3fd_path is not None:
        weights = Path(s3fd_path)
    elif name in ("auto", "yunet"):
        weights = find_yunet(yunet_path)
    return create_detector(name, weights=weights, device=device, face_det_batch_size=face_det_batch_size)
