"""Peak memory of a long 1080p clip against a short one, generator left out; each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.line import TUNING, WORKERS
from benchmarks.media import moving, repeated, speech_like
from benchmarks.quiet import Copying
from lipsync.faces.detector import create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import write_file
from lipsync.pipeline import Job, Report, synchronise
from lipsync.voice.voice import Waveform

LARGEST_CLIP_BYTES = 10**9


def measure() -> dict[str, Any]:
    # without noise, so that ten minutes are no larger than what a phone makes of them
    base = moving(1920, 1080, frames=250, gop=250, noise=0.0)
    results: dict[str, Any] = {"detector": "centerface", "preset": "ultrafast"}
    with tempfile.TemporaryDirectory() as folder:
        for name, minutes in (("one_minute", 1), ("ten_minutes", 10)):
            clip = Path(folder) / f"{minutes}.mp4"
            clip.write_bytes(repeated(base, 6 * minutes))
            results[name] = {"clip_mb": round(clip.stat().st_size / 1e6, 1)} | _run_alone(clip, 60 * minutes)
    results["more_mb"] = round(results["ten_minutes"]["peak_mb"] - results["one_minute"]["peak_mb"], 1)
    return results


def _run_alone(clip: Path, seconds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", str(clip), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def process(clip: Path, seconds: int) -> dict[str, Any]:
    """One clip through the whole pipeline to a file beside it, and this process's peak memory after it."""
    stages = LocalStages(Copying(), create_detector=lambda _: create_detector("centerface"), workers=WORKERS)
    voice = Waveform(speech_like(seconds), 16_000)
    limits = Limits(video_bytes=LARGEST_CLIP_BYTES)
    job = Job(Blob.of(clip, limit_bytes=LARGEST_CLIP_BYTES), voice, Options(preset="ultrafast"), limits)
    report = Report()
    result = synchronise(job, stages, tuning=TUNING, report=report)
    asyncio.run(write_file(result, clip.with_suffix(".out.mp4")))
    return {"frames": report.frame_count, "peak_mb": round(peak_mb(), 1)}


def peak_mb() -> float:
    """Most memory that this process has had resident, in MiB."""
    # NOTE: not getrusage's ru_maxrss, which a child inherits from the process that started it
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process has had (no VmHWM in /proc/self/status)")


def main() -> None:
    arguments = sys.argv[1:]
    print(json.dumps(process(Path(arguments[0]), int(arguments[1])) if arguments else measure()))


if __name__ == "__main__":
    main()
