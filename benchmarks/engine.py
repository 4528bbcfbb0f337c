"""CPU time of the full-size generator by how it is laid out, and of onnxruntime on the same weights; one thread."""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.line import cpu_ms
from lipsync.core import F32, U8
from lipsync.engine.network import while_compiling
from lipsync.engine.packed import pack
from lipsync.model.folding import fold
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip

BATCHES = (8,)
QUICK = os.environ.get("BENCH_QUICK") == "1"
"""Without the compiled ways, which take minutes to compile."""
ROUNDS = 3
LAID_OUT = "folded, channels_last"
DEFAULT = f"{LAID_OUT}, packed"

Draw = Callable[[], F32]


def main() -> None:
    torch.set_num_threads(1)
    model = seeded_generator(0)
    cases = [case for batch in BATCHES for case in compare(model, fold(model), batch)]
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    how = {"threads": 1, "rounds": ROUNDS, "versions": versions, "default": DEFAULT}
    print(json.dumps(how | {"left_out": "compiled" if QUICK else "nothing", "cases": cases}))


def compare(model: Wav2Lip, folded: Wav2Lip, batch: int) -> list[dict[str, Any]]:
    """Milliseconds of CPU per frame, the least of rounds that take turns; differences from the plain network's output
    in levels of 255, after truncation how many values differ."""
    draw = torch.Generator().manual_seed(batch)
    mel = torch.rand(batch, 1, 80, 16, generator=draw) * 8 - 4
    faces = torch.rand(batch, 6, 96, 96, generator=draw)
    ways: dict[str, Draw] = {
        "plain": eager(model, mel, faces),
        "folded": eager(folded, mel, faces),
        "channels_last": eager(model, mel, faces, memory_format=torch.channels_last),
        LAID_OUT: eager(folded, mel, faces, memory_format=torch.channels_last),
        DEFAULT: eager(folded, mel, faces, memory_format=torch.channels_last, packed=True),
        "onnxruntime": runtime(model, mel, faces),
    }
    last: dict[str, Any] = {"memory_format": torch.channels_last}
    ways[f"{LAID_OUT}, bf16"] = eager(folded, mel, faces, dtype=torch.bfloat16, **last)
    ways[f"{DEFAULT}, bf16"] = eager(folded, mel, faces, dtype=torch.bfloat16, packed=True, **last)
    if not QUICK:
        ways[f"{LAID_OUT}, compiled"] = eager(folded, mel, faces, compiled=True, **last)
        ways[f"{LAID_OUT}, bf16, compiled"] = eager(folded, mel, faces, dtype=torch.bfloat16, compiled=True, **last)
    exact = ways["plain"]()
    assert exact.std() * 255 >= 40, "weights that draw grey would show nothing"
    drawn = {name: way() for name, way in ways.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            spent[name].append(cpu_ms(way))
    return [
        {
            "batch": batch,
            "way": name,
            "ms": round(min(spent[name]) / batch, 1),
            "times_plain": round(min(spent["plain"]) / min(spent[name]), 2),
            "times_onnxruntime": round(min(spent["onnxruntime"]) / min(spent[name]), 2),
            "max_difference_levels": round(float(np.abs(drawn[name] - exact).max()) * 255, 4),
            "different_percent": round(100 * float((truncated(drawn[name]) != truncated(exact)).mean()), 3),
        }
        for name in ways
    ]


def truncated(drawn: F32) -> U8:
    return (drawn * 255).astype(np.uint8)


def eager(
    model: Wav2Lip,
    mel: Tensor,
    faces: Tensor,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
    compiled: bool = False,
) -> Draw:
    laid_out: Any = copy.deepcopy(model).to(dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
    given = mel.to(dtype), faces.to(dtype).contiguous(memory_format=memory_format)
    if packed:
        laid_out = pack(laid_out, len(mel))
    if compiled:
        laid_out = torch.compile(laid_out, dynamic=False)

    def draw() -> F32:
        with torch.inference_mode():
            return np.asarray(laid_out(*given).float().numpy(), np.float32)

    if compiled:
        with while_compiling(torch.device("cpu")):
            draw()
    return draw


def runtime(model: Wav2Lip, mel: Tensor, faces: Tensor) -> Draw:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this exporter is the older of its two
        torch.onnx.export(model, (mel, faces), buffer, dynamo=False, input_names=["mel", "faces"])  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {"mel": mel.numpy(), "faces": faces.numpy()}
    return lambda: np.asarray(session.run(None, given)[0], np.float32)


if __name__ == "__main__":
    main()
