"""What a frame costs by counting, and what the machine could do at most by measuring: the shares come from both."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipsync.engine.device import arithmetic
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Wav2Lip

_SIDE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
_ROUNDS = 5


def cost_per_frame(model: Wav2Lip) -> dict[str, float]:
    """GFLOP, and millions of values that convolutions read and write when each is run by itself."""
    counted = {"flop": 0, "values": 0}

    def count(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        weights = layer.weight.numel() // (layer.out_channels if isinstance(layer, nn.Conv2d) else layer.in_channels)
        steps = made.numel() if isinstance(layer, nn.Conv2d) else given[0].numel()
        counted["flop"] += 2 * weights * steps
        counted["values"] += given[0].numel() + made.numel()

    with torch.device("meta"):
        shapes = Wav2Lip(model.widths).eval()
    for layer in shapes.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    mel = torch.empty(1, 1, MEL_BANDS, MEL_WINDOW, device="meta")
    shapes(mel, torch.empty(1, 6, FACE_SIDE, FACE_SIDE, device="meta"))
    return {"gflop": round(counted["flop"] / 1e9, 4), "million_values": round(counted["values"] / 1e6, 3)}


def ceilings(device: torch.device) -> dict[str, float]:
    """The rate of a large matrix product in each number format (TFLOP/s), and of a large copy (GB/s, read and written).

    Random values: zeros would run faster than anything real does.
    """
    side = _SIDE[device.type]
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device.type == "cuda":
        formats["fp16"] = torch.float16
    found = {}
    for name, dtype in formats.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[f"matmul_{name}_tflops"] = round(2 * side**3 / _seconds(device, lambda: a @ b) / 1e12, 3)  # noqa: B023
    if device.type == "cuda":
        with arithmetic("high", exact=False):
            a, b = (torch.randn(side, side, device=device) for _ in range(2))
            found["matmul_tf32_tflops"] = round(2 * side**3 / _seconds(device, lambda: a @ b) / 1e12, 3)
    source = torch.randint(0, 255, (_COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = round(2 * source.numel() / _seconds(device, lambda: target.copy_(source)) / 1e9, 1)
    return found


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The median of several runs after two to warm up."""
    taken = []
    clock = clock_of(device)
    for n in range(2 + _ROUNDS):
        finish(device)
        started = clock()
        work()
        finish(device)
        if n >= 2:
            taken.append(clock() - started)
    return sorted(taken)[len(taken) // 2]


def clock_of(device: torch.device) -> Callable[[], float]:
    """The processor's own time on a CPU, where one thread computes and others' work would show; else the wall's."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def finish(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
