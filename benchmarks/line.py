"""The whole line without the generator, and its encoder alone: what both the overhead and the decoding figures run."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quiet import Copying
from lipsync.core import AudioFormat, AudioPacket
from lipsync.faces.detector import Detector
from lipsync.local import LocalStages
from lipsync.media.encode import encode_segment
from lipsync.media.picture import Picture
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import write_file
from lipsync.pipeline import Job, Report, synchronise
from lipsync.plan import Tuning
from lipsync.render import Encode
from lipsync.voice.voice import Waveform

LARGEST_BYTES = 10**9
WORKERS = 2
TUNING = Tuning(window=WORKERS + 1)
"""As ``LipsyncService`` has it with as many workers."""


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds of all threads of this process while ``work`` runs."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


@dataclass(slots=True)
class Line:
    """The pipeline with one detector, which stays loaded; nothing is remembered between runs."""

    detector: Detector
    encode: Encode = encode_segment
    _stages: LocalStages = field(init=False)

    def __post_init__(self) -> None:
        self._stages = LocalStages(
            Copying(), create_detector=lambda _: self.detector, workers=WORKERS, cache_entries=0, encode=self.encode
        )

    def encoding_with(self, encode: Encode) -> Line:
        return Line(self.detector, encode)

    def run(self, face: bytes, voice: Waveform, options: Options | None = None) -> Report:
        """One request, from bytes to a progressive mp4 on disk."""
        job = Job(Blob.of(face, limit_bytes=LARGEST_BYTES), voice, options or Options(), Limits())
        report = Report()
        with tempfile.TemporaryDirectory() as folder:
            result = synchronise(job, self._stages, tuning=TUNING, report=report)
            asyncio.run(write_file(result, Path(folder) / "out.mp4"))
        return report

    def run_once(self, face: bytes, voice: Waveform, options: Options | None = None) -> Report:
        try:
            return self.run(face, voice, options)
        finally:
            self.close()

    def close(self) -> None:
        self._stages.close()


class Recorder:
    """Encodes, and keeps copies of what it was given, so that the same can be encoded again alone."""

    def __init__(self) -> None:
        self._segments: list[tuple[list[Picture], dict[str, Any]]] = []

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
    ) -> bytes:
        settings = {
            "fps": fps,
            "packets": packets,
            "audio_format": audio_format,
            "options": options,
            "pixel_aspect": pixel_aspect,
        }
        kept = [Picture(np.array(p.y), np.array(p.u), np.array(p.v), p.color) for p in pictures]
        self._segments.append((kept, settings | {"first_frame": first_frame}))
        return encode_segment(kept, **self._segments[-1][1])

    def encode_again(self) -> None:
        """The same segments with the same settings, on as many threads as the line has."""
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(lambda segment: encode_segment(segment[0], **segment[1]), self._segments))
