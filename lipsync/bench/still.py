"""What it would bring to compute a still face's features once: the upper bound, and in a batch that is half still.

Layer by layer, without graphs and compiling, beside the same without reuse; the rounds take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lipsync.bench.cost import clock_of, finish
from lipsync.engine.device import arithmetic, choose_device
from lipsync.model.folding import fold
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Wav2Lip

ROUNDS = 7
TARGET_PERCENT = 5.0
"""What a mixed batch must gain for the reuse to be worth its code."""


def measure_still(model: Wav2Lip, device_name: str) -> dict[str, Any]:
    device = choose_device(device_name)
    on_cuda = device.type == "cuda"
    dtype, batch = (torch.float16, 512) if on_cuda else (torch.float32, 8)
    network = fold(model).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    faces = torch.rand(batch, 6, FACE_SIDE, FACE_SIDE, device=device).to(dtype)
    faces = faces.contiguous(memory_format=torch.channels_last)
    mel = (torch.rand(batch, 1, MEL_BANDS, MEL_WINDOW, device=device) * 8 - 4).to(dtype)
    ways: dict[str, Callable[[], Tensor]] = {
        "no_reuse": lambda: network(mel, faces),
        "all_still": lambda: _with_reuse(network, mel, faces, still=batch),
        "half_still": lambda: _with_reuse(network, mel, faces, still=batch // 2),
    }
    spent = _in_turns(ways, device)
    gain = {name: round(100 * (spent["no_reuse"] / spent[name] - 1), 1) for name in ("all_still", "half_still")}
    return {
        "batch": batch,
        "rounds": ROUNDS,
        "ms_per_frame": {name: round(1000 * taken / batch, 3) for name, taken in spent.items()},
        "gain_percent": gain,
        "target_percent": TARGET_PERCENT,
        "worth_it": gain["half_still"] >= TARGET_PERCENT,
    }


def _with_reuse(network: Wav2Lip, mel: Tensor, faces: Tensor, *, still: int) -> Tensor:
    """The first ``still`` frames show one face, whose features are computed once and given to each."""
    moving = len(faces) - still
    which = torch.cat((torch.zeros(still, dtype=torch.long), torch.arange(1, moving + 1, dtype=torch.long))).to(
        faces.device
    )
    features = network.encode_faces(faces[still - 1 :])
    return network.draw(network.audio_encoder(mel), [one.index_select(0, which) for one in features])


def _in_turns(ways: dict[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
    """Median seconds; of the processor on a CPU."""
    clock = clock_of(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    kernels = arithmetic("high", exact=False) if device.type == "cuda" else nullcontext()  # the best are searched for
    with torch.inference_mode(), kernels:
        for n in range(ROUNDS + 2):
            for name, way in ways.items():
                finish(device)
                started = clock()
                way()
                finish(device)
                if n >= 2:
                    taken[name].append(clock() - started)
    return {name: sorted(times)[len(times) // 2] for name, times in taken.items()}
