"""CPU time of looking for faces, per source frame: every detector on every frame and every 5th; decoding alone."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.line import LARGEST_BYTES, cpu_ms
from benchmarks.media import detectors, moving
from lipsync.faces.chunk import DETECTION_SIDE, detect_chunk
from lipsync.faces.detector import Detector
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.render import FaceInput, Geometry

FRAMES = 60
SIZES = ((1280, 720), (1920, 1080))
ROUNDS = 3
EVERY = (1, 5)


def main() -> None:
    found = detectors()
    print(json.dumps({"frames": FRAMES, "rounds": ROUNDS, "cases": [measure(*size, found) for size in SIZES]}))


def measure(width: int, height: int, found: list[Detector]) -> dict[str, Any]:
    """Milliseconds of CPU per source frame, the least of the rounds; opening the input is part of each."""
    face = opened(moving(width, height, frames=FRAMES, gop=FRAMES))
    case: dict[str, Any] = {"size": f"{width}×{height}", "decode_ms": per_frame(lambda: shrunk(face)), "looks": []}
    for detector in found:
        for every in EVERY:
            spent = per_frame(lambda detector=detector, every=every: looked(face, detector, every))  # type: ignore[misc]
            case["looks"].append({"detector": detector.name, "every": every, "ms": spent})
    return case


def opened(data: bytes) -> FaceInput:
    blob = Blob.of(data, limit_bytes=LARGEST_BYTES)
    info = probe_face(blob, Limits())
    return FaceInput.of(blob, info, build_index(blob, info, Limits()), Geometry())


def per_frame(work: Any) -> float:
    return round(min(cpu_ms(work) for _ in range(ROUNDS)) / FRAMES, 2)


def shrunk(face: FaceInput) -> None:
    with face.open(Limits()) as reader:
        for _ in reader.read_small(0, FRAMES, max_side=DETECTION_SIDE):
            pass  # decoding and scaling is all


def looked(face: FaceInput, detector: Detector, every: int) -> None:
    size = (face.width, face.height)
    with face.open(Limits()) as reader:
        options = Options(detect_every=every)
        found = detect_chunk(reader, 0, FRAMES, detector=detector, options=options, index=face.index, size=size)
    assert all(found.anchors.values()), "every frame that was looked at has a face"


if __name__ == "__main__":
    main()
