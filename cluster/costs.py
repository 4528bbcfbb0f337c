"""What a frame costs and what a cluster is taken to have: costs as ``lipsync bench`` measures them, the rest assumed.

Everything that is assumed is a field of ``Assumptions`` with its reason; the page on scaling lists them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "docs" / "benchmarks" / "ladder_cpu.json"
PATCH_BYTES = 96 * 96 * 3
"""A crop on its way to a Generator, and a patch on its way back."""
RENDERING = ("decode", "crop", "paste and encode")


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU milliseconds at 720p by the clocks of the threads that work; what a library's own threads add is left out."""

    still_frame_ms: float
    """Rendering: a still is decoded and cropped once."""
    look_ms: float
    """The search for a still's face."""
    video_frame_ms: float
    """Rendering, decoding included."""
    video_decode_ms: float
    video_detect_ms: float
    """Per source frame: decoding, and a look at each fifth."""

    @classmethod
    def read(cls, path: Path = BENCH) -> Costs:
        """From a result of ``lipsync bench``. Raises KeyError where it has nothing end to end."""
        cases = {(one["face"], one["state"]): one for one in json.loads(path.read_text())["end_to_end"]["cases"]}
        still, video = cases["still, 720p", "warm"], cases["video, 720p", "warm"]
        new_still, new_video = cases["still, 720p", "cold"], cases["video, 720p", "cold"]
        return cls(
            still_frame_ms=_ms(still, *RENDERING, of=still["frames"]),
            look_ms=_ms(new_still, "detect", of=new_still["source_frames"]),
            video_frame_ms=_ms(video, *RENDERING, of=video["frames"]),
            video_decode_ms=_ms(video, "decode", of=video["frames"]),
            video_detect_ms=_ms(new_video, "detect", of=min(new_video["frames"], new_video["source_frames"])),
        )


def _ms(case: dict[str, Any], *stages: str, of: int) -> float:
    return round(1000 * sum(float(case["stage_cpu_s"][stage]) for stage in stages) / of, 2)


def drawn_frames_per_s(path: Path) -> float | None:
    """What the quickest row of a bench's device draws; None where that was a CPU, which says nothing of a GPU."""
    found = json.loads(path.read_text())
    if not found["device"].startswith("cuda"):
        return None
    return max(float(row["frames_per_s"]) for row in found["rows"] if "frames_per_s" in row)


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
