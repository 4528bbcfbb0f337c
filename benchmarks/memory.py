"""Peak memory of a long 1080p clip against a short one, generator left out; each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.line import LARGEST_BYTES, TUNING, WORKERS
from benchmarks.media import moving, repeated, speech_like, wav
from benchmarks.quiet import Copying
from lipsync.allocator import trim_regularly
from lipsync.faces.detector import create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import write_file
from lipsync.pipeline import Job, Report, synchronise

RUNS = {1: 3, 10: 1}
"""How often a clip of so many minutes is run: peaks differ by what is under way at once, and of the short one's the
middle counts, so that luck favours neither."""


def measure() -> dict[str, Any]:
    # without noise, so that ten minutes are no larger than what a phone makes of them
    base = moving(1920, 1080, frames=250, gop=250, noise=0.0)
    results: dict[str, Any] = {"detector": "centerface", "preset": "ultrafast"}
    with tempfile.TemporaryDirectory() as folder:
        for name, minutes in (("one_minute", 1), ("ten_minutes", 10)):
            clip, voice = Path(folder) / f"{minutes}.mp4", Path(folder) / f"{minutes}.wav"
            clip.write_bytes(repeated(base, 6 * minutes))
            voice.write_bytes(wav(speech_like(60 * minutes)))
            runs = [_run_alone(clip, voice) for _ in range(RUNS[minutes])]
            results[name] = {
                "frames": runs[0]["frames"],
                "clip_mb": round(clip.stat().st_size / 1e6, 1),
                "peaks_mb": sorted(run["peak_mb"] for run in runs),
                "peak_mb": median(run["peak_mb"] for run in runs),
            }
    results["more_mb"] = round(results["ten_minutes"]["peak_mb"] - results["one_minute"]["peak_mb"], 1)
    return results


def _run_alone(clip: Path, voice: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", str(clip), str(voice)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def process(clip: Path, voice: Path) -> dict[str, Any]:
    """One clip through the whole pipeline to a file beside it, as the command line has it, and the peak memory."""
    trim_regularly()
    stages = LocalStages(Copying(), create_detector=lambda _: create_detector("centerface"), workers=WORKERS)
    limits = Limits(video_bytes=LARGEST_BYTES)
    face, heard = (Blob.of(path, limit_bytes=LARGEST_BYTES) for path in (clip, voice))
    job = Job(face, heard, Options(preset="ultrafast"), limits)
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
    print(json.dumps(process(Path(arguments[0]), Path(arguments[1])) if arguments else measure()))


if __name__ == "__main__":
    main()
