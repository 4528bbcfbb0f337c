"""CPU time of looking for faces, per source frame: every detector on every frame and every 5th, on a small picture
first and closely, and how much the boxes differ; decoding alone."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.line import LARGEST_BYTES, cpu_ms
from benchmarks.media import detectors, moving
from lipsync.core import Detection
from lipsync.faces.chunk import detect_chunk
from lipsync.faces.detector import Detector
from lipsync.faces.overlap import overlap_of
from lipsync.media.geometry import Geometry
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.render import FaceInput

FRAMES = 60
SIZES = ((1280, 720), (1920, 1080))
ROUNDS = 3
EVERY = (1, 5)
Anchors = dict[int, list[Detection]]


def main() -> None:
    found = detectors()
    print(json.dumps({"frames": FRAMES, "rounds": ROUNDS, "cases": [measure(*size, found) for size in SIZES]}))


def measure(width: int, height: int, found: list[Detector]) -> dict[str, Any]:
    """Milliseconds of CPU per source frame, the least of the rounds; opening the input is part of each."""
    face = opened(moving(width, height, frames=FRAMES, gop=FRAMES))
    case: dict[str, Any] = {"size": f"{width}×{height}", "decode_ms": per_frame(lambda: decoded(face)), "looks": []}
    for detector in found:
        for every in EVERY:
            # "closely" is how the other ways of choosing a face look
            first, closely = Options(detect_every=every), Options(detect_every=every, face_choice="highest_score")
            case["looks"].append(
                {"detector": detector.name, "every": every}
                | {"ms": per_frame(lambda d=detector, o=first: looked(face, d, o))}
                | {"closely_ms": per_frame(lambda d=detector, o=closely: looked(face, d, o))}
                | {"overlap": agreement(looked(face, detector, first), looked(face, detector, closely))}
            )
    return case


def agreement(one: Anchors, other: Anchors) -> float:
    """The least overlap (intersection over union) of the largest face's boxes."""
    largest = ([max(faces, key=lambda face: face.area) for faces in anchors.values()] for anchors in (one, other))
    return round(min(overlap_of(a, b) for a, b in zip(*largest, strict=True)), 3)


def opened(data: bytes) -> FaceInput:
    blob = Blob.of(data, limit_bytes=LARGEST_BYTES)
    info = probe_face(blob, Limits())
    return FaceInput.of(blob, info, build_index(blob, info, Limits()), Geometry())


def per_frame(work: Any) -> float:
    return round(min(cpu_ms(work) for _ in range(ROUNDS)) / FRAMES, 2)


def decoded(face: FaceInput) -> None:
    with face.open(Limits()) as reader:
        for _ in reader.glimpses(0, FRAMES):
            pass  # decoding is all


def looked(face: FaceInput, detector: Detector, options: Options) -> Anchors:
    size = (face.width, face.height)
    with face.open(Limits()) as reader:
        found = detect_chunk(reader, 0, FRAMES, detector=detector, options=options, index=face.index, size=size)
    assert all(found.anchors.values()), "every frame that was looked at has a face"
    return found.anchors


if __name__ == "__main__":
    main()
