"""What a frame costs and what a cluster is taken to have: measured costs from docs/benchmarks.json, the rest assumed.

Everything that is assumed is a field of ``Assumptions`` with its reason; the page on scaling lists them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks.json"
DETECTOR = "centerface"
PATCH_BYTES = 96 * 96 * 3
"""A crop on its way to a Generator, and a patch on its way back."""


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU milliseconds, measured at 720p; a frame of a still is drawn on planes that are kept, and looked at once."""

    still_frame_ms: float
    still_encode_ms: float
    look_ms: float
    """Decoding and one look for faces."""
    video_frame_ms: float
    video_decode_ms: float
    video_detect_ms: float
    """Per source frame: decoding, and a look at each fifth."""
    video_encode_ms: float

    @classmethod
    def read(cls, path: Path = BENCHMARKS) -> Costs:
        """From the committed measurements. Raises KeyError or StopIteration where one is missing."""
        measured = json.loads(path.read_text())
        still = _overhead(measured, "still, 720p")
        video = _overhead(measured, "video, 720p")
        detection = next(case for case in measured["detection"]["cases"] if case["size"] == "1280×720")
        looks = {look["every"]: look["ms"] for look in detection["looks"] if look["detector"] == DETECTOR}
        return cls(
            still_frame_ms=still["line_ms"],
            still_encode_ms=still["encode_ms"],
            look_ms=looks[1],
            video_frame_ms=video["line_ms"],
            video_decode_ms=detection["decode_ms"],
            video_detect_ms=looks[5],
            video_encode_ms=video["encode_ms"],
        )

    @property
    def video_render_ms(self) -> float:
        """What a Renderer spends on a frame of a video: the whole line without detection, which is the
        Preprocessor's."""
        return self.video_frame_ms - self.video_detect_ms


def _overhead(measured: dict[str, Any], face: str) -> dict[str, Any]:
    cases: list[dict[str, Any]] = measured["overhead"]["cases"]
    return next(case for case in cases if case["face"] == face and case["detector"] == DETECTOR)


def _assumed(value: Any, why: str) -> Any:
    return field(default=value, metadata={"why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What was not measured by this project on the machine that it stands for."""

    gpu_frames_per_s: float = _assumed(
        40_000.0, "not measured: the engine's target for an H200 (fp16, compiled, batch 512); swept below"
    )
    pass_s: float = _assumed(0.002, "not measured: what a pass over the device takes beyond its frames")
    buckets: tuple[int, ...] = _assumed((16, 64, 128, 256, 512), "a batch costs as much as the bucket it is padded to")
    cores_per_gpu: int = _assumed(24, "a node of 8 GPUs and 192 cores; swept below")
    gpus_per_node: int = _assumed(8, "the same node")
    node_bytes_per_s: float = _assumed(1.25e9, "10 Gbit/s each way for a node")
    share_of_videos: float = _assumed(0.25, "the other requests bring a still face")
    shortest_s: float = _assumed(2.0, "voices are log-uniform from this …")
    longest_s: float = _assumed(40.0, "… to this many seconds, at 25 frames/s")
    still_bytes: float = _assumed(300e3, "a still face, as it is uploaded")
    video_bytes: float = _assumed(4e6, "a face video, as it is uploaded: 10 s, looped")
    calls_per_s: float = _assumed(
        150.0, "handle calls/s of one Ingress replica: 110 to 366 on two busy cores, Ray 2.60"
    )
    answers_per_s: float = _assumed(1000.0, "calls/s that the one Admission replica answers: about 1,500 pings there")
    replicas_per_controller: int = _assumed(2000, "replicas of one Serve controller: the most seen in public reports")
    gpu_price: float = _assumed(2.5, "dollars for a GPU's hour, without cores")
    core_price: float = _assumed(0.04, "dollars for a core's hour")
    start_s: float = _assumed(30.0, "from the decision until a Generator draws; the node is there")

    def said(self) -> dict[str, dict[str, Any]]:
        return {item.name: {"value": getattr(self, item.name), "why": item.metadata["why"]} for item in fields(self)}
