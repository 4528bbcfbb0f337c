"""CPU time of the whole line without the generator, against encoding the same frames alone; ratios within one run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.line import Line, Recorder, cpu_ms
from benchmarks.media import assets, detectors, moving, speech_like, still
from lipsync.faces.detector import Detector
from lipsync.voice.mel import warm_up
from lipsync.voice.voice import Waveform

FPS = 25


@dataclass(frozen=True, slots=True)
class Face:
    """A face input, and how often how many frames of it are made."""

    name: str
    data: bytes
    frames: int = 250
    rounds: int = 3
    is_still: bool = False
    made_here: bool = True


def main() -> None:
    warm_up()
    cases: list[dict[str, Any]] = []
    for face in faces():
        for detector in detectors():
            what = {"face": face.name, "is_still": face.is_still, "made_here": face.made_here}
            cases.append(what | {"detector": detector.name} | compare(face, detector))
            print(cases[-1], file=sys.stderr, flush=True)
    print(json.dumps({"cases": cases}))


def faces() -> list[Face]:
    made = [
        Face("still, 720p", still(1280, 720), frames=500, is_still=True),
        Face("video, 720p", moving(1280, 720, frames=250, gop=250)),
        Face("video without noise, 720p", moving(1280, 720, frames=250, gop=250, noise=0.0)),
    ]
    real = assets() / "latentsync_demo1_video.mp4"
    if real.exists():
        made.append(Face("real video, 1080×1920", real.read_bytes(), made_here=False))
    return made


def compare(face: Face, detector: Detector) -> dict[str, Any]:
    """Milliseconds of CPU per output frame, medians over rounds that alternate; a first run warms everything up."""
    voice = Waveform(speech_like(face.frames / FPS), 16_000)
    recorder = Recorder()
    Line(detector, recorder).run_once(face.data, voice)
    line = Line(detector)
    line.run(face.data, voice)
    rounds = [
        (cpu_ms(lambda: line.run(face.data, voice)) / face.frames, cpu_ms(recorder.encode_again) / face.frames)
        for _ in range(face.rounds)
    ]
    line.close()
    return {
        "frames": face.frames,
        "rounds": face.rounds,
        "line_ms": round(median(whole for whole, _ in rounds), 2),
        "encode_ms": round(median(encode for _, encode in rounds), 2),
        "ratio": round(median(whole / encode for whole, encode in rounds), 2),
        "ratios": sorted(round(whole / encode, 2) for whole, encode in rounds),
    }


if __name__ == "__main__":
    main()
