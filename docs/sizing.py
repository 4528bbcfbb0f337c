"""What a cluster must be made of, computed from the figures in benchmarks.json; a block of docs/operations.md."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VIEWERS, FPS = 1000, 25
REQUESTS, REQUEST_S, WITHIN_S = 1000, 40, 600
BUSY = 0.7
"""How busy cores and devices may be on average, so that bursts find room."""
_MODEL = json.loads((Path(__file__).parent / "benchmarks" / "scaling.json").read_text())
ASSUMED_GPU_FRAMES_PER_S = int(_MODEL["assumptions"]["gpu_frames_per_s"]["value"])
"""As the model of larger clusters has it. Not measured: no GPU was at hand."""
CROP_BYTES = 96 * 96 * 3
ENCODED_FRAMES = 256
"""How many pictures the b_frames measurement encodes."""
DETECTOR = "centerface"
"""What a cluster finds faces with unless YuNet's weights are set."""


@dataclass(frozen=True, slots=True)
class Need:
    """So much work in so much time: what it takes of each kind of machine."""

    frames_per_s: float
    replica_gb: float

    def cores(self, cpu_ms: float) -> int:
        return math.ceil(self.frames_per_s * cpu_ms / 1000 / BUSY)

    def memory_gb(self, cpu_ms: float) -> float:
        return self.cores(cpu_ms) * self.replica_gb

    @property
    def gpus(self) -> int:
        return math.ceil(self.frames_per_s / ASSUMED_GPU_FRAMES_PER_S / BUSY)

    def between_gbit_s(self, *, is_still: bool) -> float:
        return self.frames_per_s * CROP_BYTES * (1 if is_still else 2) * 8 / 1e9

    def out_gbit_s(self, encoded_bytes: float) -> float:
        return self.frames_per_s * encoded_bytes * 8 / 1e9


def sizing(figures: dict[str, Any]) -> str:
    """The tables, and the formulas that made them."""
    cases = [*_served(figures), *(case for case in figures["overhead"]["cases"] if case["detector"] == DETECTOR)]
    replica_gb = float(figures["memory"]["ten_minutes"]["peak_mb"]) / 1000
    viewers = Need(VIEWERS * FPS, replica_gb)
    requests = Need(REQUESTS * REQUEST_S * FPS / WITHIN_S, replica_gb)
    machine, served_on = figures["overhead"]["machine"], figures["serving"]["machine"]
    drawn_ms = min(run["ms"] for run in figures["engine"]["cases"] if run["way"] == figures["engine"]["default"])
    return "\n".join(
        [
            f"For {VIEWERS:,} concurrent real-time viewers ({viewers.frames_per_s:,.0f} frames/s):",
            "",
            *_table(viewers, cases, figures),
            "",
            f"For {REQUESTS:,} requests of {REQUEST_S} s within {WITHIN_S // 60} minutes "
            f"({requests.frames_per_s:,.0f} frames/s):",
            "",
            *_table(requests, cases, figures),
            "",
            "*Served*: the whole application, Ray and the search for a new face each time included, with 64 callers "
            f"on {served_on['cores']} cores of an {served_on['processor']} ([benchmarks](benchmarks.md#serving)): "
            f"count with these. The others: one process's line alone, on {machine['cores']} cores of an "
            f"{machine['processor']} ([benchmarks](benchmarks.md#overhead)), where the still's mouth does not move, "
            "the encoder's easiest case: what is left when nothing else costs anything. Cores differ: `make bench` on "
            "yours.",
            "",
            f"Cores that keep one such GPU {BUSY:.0%} busy, and can do no more: "
            + "; ".join(f"{case['face']}: {cores_per_gpu(case['line_ms']):,}" for case in cases)
            + ".",
            "",
            f"GPUs are computed from an assumption: one draws {ASSUMED_GPU_FRAMES_PER_S:,} frames/s, the engine's "
            "target for an H200 (fp16, compiled, batch 512). What a GPU draws was not measured. "
            f"Drawn on CPUs instead, the full-size generator costs {drawn_ms:g} CPU-ms a frame "
            f"([measured](benchmarks.md#engine)): {viewers.cores(drawn_ms):,} more cores for {VIEWERS:,} viewers.",
            "",
            "* cores = frames/s × CPU-ms ÷ 1000 ÷ 0.7 busy",
            f"* memory = cores (a Renderer or Preprocessor each) × {replica_gb:.2f} GB, the peak of a whole process on "
            "a 10-minute 1080p clip ([measured](benchmarks.md#memory)), more than either needs; each Generator's comes "
            "on top",
            "* between nodes = frames/s × 27,648 bytes × 2 for a video (crops there, patches back), × 1 for a still "
            "(one crop for all); nothing where Renderer and Generator share a node. Inputs come on top, once for each "
            "node that works on a request",
            "* to callers = frames/s × encoded bytes a frame of 720p without sound "
            "([measured](benchmarks.md#b-frames))",
            "* GPUs = frames/s ÷ assumed frames/s of one ÷ 0.7 busy, rounded up",
        ]
    )


def _served(figures: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = figures["serving"]["stages"]["kinds"]
    return [
        {"face": "still, 720p, served", "line_ms": kinds["still 720p"]["all"], "is_still": True},
        {"face": "video, 720p, served", "line_ms": kinds["video"]["all"], "is_still": False},
    ]


def cores_per_gpu(cpu_ms: float) -> int:
    """Cores whose frames, at so many CPU milliseconds each, keep one GPU as busy as it may be."""
    return math.ceil(ASSUMED_GPU_FRAMES_PER_S * BUSY * cpu_ms / 1000)


def _table(need: Need, cases: list[dict[str, Any]], figures: dict[str, Any]) -> list[str]:
    return [
        "| face | CPU-ms a frame | cores | memory, GB | GPUs | network between nodes, Gbit/s | to callers, Gbit/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(need, case, figures) for case in cases),
    ]


def _row(need: Need, case: dict[str, Any], figures: dict[str, Any]) -> str:
    cpu_ms, encoded = case["line_ms"], figures["b_frames"]
    kilobytes = encoded["still_0_b_frames" if case["is_still"] else "moving_0_b_frames"]["kilobytes"]
    out_gbit_s = need.out_gbit_s(kilobytes * 1000 / ENCODED_FRAMES)
    cells = [
        case["face"],
        f"{cpu_ms:g}",
        f"{need.cores(cpu_ms):,}",
        f"{need.memory_gb(cpu_ms):,.0f}",
        str(need.gpus),
        f"{need.between_gbit_s(is_still=case['is_still']):.1f}",
        f"{out_gbit_s:.2f}" if "720p" in case["face"] else "–",
    ]
    return f"| {' | '.join(cells)} |"
