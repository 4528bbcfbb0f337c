"""What a cluster must be made of, computed from the figures in benchmarks.json; a block of docs/operations.md."""

from __future__ import annotations

import math
from typing import Any

VIEWERS, FPS = 1000, 25
REQUESTS, REQUEST_S, WITHIN_S = 1000, 40, 600
BUSY = 0.7
"""How busy cores and devices may be on average, so that bursts find room."""
ASSUMED_GPU_FRAMES_PER_S = 40_000
"""The target for an H200 in half precision, compiled, at batch 512. Not measured: no GPU was at hand."""
CROP_BYTES = 96 * 96 * 3
ENCODED_FRAMES = 256
"""How many pictures the b_frames measurement encodes."""
DETECTOR = "centerface"
"""What a cluster finds faces with unless YuNet's weights are set."""


def sizing(figures: dict[str, Any]) -> str:
    """The tables, and the formulas that made them."""
    cases = [case for case in figures["overhead"]["cases"] if case["detector"] == DETECTOR]
    rows = [row for case in cases for row in _row(case, figures)]
    machine = figures["overhead"]["machine"]
    drawn_ms = min(run["ms"] for run in figures["engine"]["cases"] if run["way"] == "folded, channels_last")
    return "\n".join(
        [
            "| face | CPU-ms a frame | cores: 1,000 viewers | memory, GB | network between nodes, Gbit/s | "
            "to viewers, Gbit/s | cores: 1,000 requests of 40 s in 10 minutes |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"Measured on {machine['cores']} cores of an {machine['processor']} shared with other work "
            "([benchmarks](benchmarks.md#overhead)), where the still's mouth does not move: the encoder's easiest "
            "case, so count on more. Cores differ: `make bench` on yours.",
            "",
            "| for | GPUs | which is |",
            "|---|---:|---|",
            f"| 1,000 viewers ({VIEWERS * FPS:,} frames/s) | {_gpus(VIEWERS * FPS)} | computed from an assumption |",
            f"| 1,000 requests of 40 s in 10 minutes ({_request_frames() / WITHIN_S:,.0f} frames/s) | "
            f"{_gpus(_request_frames() / WITHIN_S)} | computed from an assumption |",
            "| frames/s of one GPU | – | not measured |",
            "",
            f"Cores that keep one such GPU {BUSY:.0%} busy, and can do no more: "
            + "; ".join(f"{case['face']}: {cores_per_gpu(case['line_ms']):,}" for case in cases)
            + ".",
            "",
            f"The assumption: one GPU draws {ASSUMED_GPU_FRAMES_PER_S:,} frames/s, the engine's target for an H200 "
            "(fp16, compiled, batch 512). "
            f"Drawn on CPUs instead, the full-size generator costs {drawn_ms:g} CPU-ms a frame "
            f"([measured](benchmarks.md#engine)): {_cores(drawn_ms):,} more cores for 1,000 viewers.",
            "",
            "* cores for viewers = viewers × fps × CPU-ms ÷ 1000 ÷ 0.7 busy",
            "* cores for requests = requests × 40 s × fps × CPU-ms ÷ 1000 ÷ 600 s ÷ 0.7 busy",
            "* memory = cores (a Renderer or Preprocessor each) × "
            f"{_replica_gb(figures):.2f} GB, the peak of a whole process on a 10-minute 1080p clip "
            "([measured](benchmarks.md#memory)), more than either needs",
            "* between nodes = viewers × fps × 27,648 bytes × 2 for a video (crops there, patches back), × 1 for a "
            "still (one crop for all); nothing where Renderer and Generator share a node. Inputs come on top, once "
            "for each node that works on a request",
            "* to viewers = viewers × fps × encoded bytes a frame of 720p without sound "
            "([measured](benchmarks.md#b-frames))",
            "* GPUs = frames/s ÷ assumed frames/s of one ÷ 0.7 busy, rounded up",
        ]
    )


def cores_per_gpu(cpu_ms: float) -> int:
    """Cores whose frames, at so many CPU milliseconds each, keep one GPU as busy as it may be."""
    return math.ceil(ASSUMED_GPU_FRAMES_PER_S * BUSY * cpu_ms / 1000)


def _row(case: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    cores = _cores(case["line_ms"])
    between = VIEWERS * FPS * CROP_BYTES * (1 if case["is_still"] else 2) * 8 / 1e9
    encoded = figures["b_frames"]["still_0_b_frames" if case["is_still"] else "moving_0_b_frames"]["kilobytes"]
    out = "–" if "720p" not in case["face"] else f"{VIEWERS * FPS * encoded * 1000 / ENCODED_FRAMES * 8 / 1e9:.1f}"
    requests = math.ceil(_request_frames() * case["line_ms"] / 1000 / WITHIN_S / BUSY)
    cells = [
        case["face"],
        f"{case['line_ms']:g}",
        f"{cores:,}",
        f"{cores * _replica_gb(figures):,.0f}",
        f"{between:.1f}",
        out,
        f"{requests:,}",
    ]
    return [f"| {' | '.join(cells)} |"]


def _cores(cpu_ms: float) -> int:
    return math.ceil(VIEWERS * FPS * cpu_ms / 1000 / BUSY)


def _gpus(frames_per_s: float) -> int:
    return math.ceil(frames_per_s / ASSUMED_GPU_FRAMES_PER_S / BUSY)


def _request_frames() -> int:
    return REQUESTS * REQUEST_S * FPS


def _replica_gb(figures: dict[str, Any]) -> float:
    return float(figures["memory"]["ten_minutes"]["peak_mb"]) / 1000
