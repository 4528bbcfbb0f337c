"""Peak memory of a long 1080p clip against a short one, generator left out; each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.media import moving, repeated, speech_like

ONE = """
import asyncio, resource, sys
from benchmarks.quiet import Copying
from benchmarks.media import speech_like
from lipsync.faces.detector import create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import write_file
from lipsync.pipeline import Job, Report, synchronise
from lipsync.voice.voice import Waveform

seconds, path = float(sys.argv[1]), sys.argv[2]
stages = LocalStages(Copying(), create_detector=lambda name: create_detector("centerface"), workers=2)
voice = Waveform(speech_like(seconds), 16_000)
job = Job(Blob.of(path, limit_bytes=10**9), voice, Options(preset="ultrafast"), Limits())
report = Report()
asyncio.run(write_file(synchronise(job, stages, report=report), path + ".out.mp4"))
print(report.frame_count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mb(path: Path, seconds: float) -> float:
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(seconds), str(path)], stdout=subprocess.PIPE, text=True, check=True
    )
    frames, peak = done.stdout.split()
    assert int(frames) == round(seconds * 25)
    return float(peak)


def main() -> None:
    base = moving(1920, 1080, frames=250, gop=250)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, minutes in (("one_minute_mb", 1), ("ten_minutes_mb", 10)):
            clip = Path(folder) / f"{minutes}.mp4"
            clip.write_bytes(repeated(base, 6 * minutes))
            results[name] = round(peak_mb(clip, 60 * minutes), 1)
    results["more_mb"] = round(results["ten_minutes_mb"] - results["one_minute_mb"], 1)
    print(json.dumps(results))


if __name__ == "__main__":
    assert speech_like(0.01).size
    main()
