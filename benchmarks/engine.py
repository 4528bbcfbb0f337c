"""CPU time of the full-size generator by how it is laid out, and of onnxruntime on the same weights; one thread."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.line import cpu_ms
from lipsync.core import F32
from lipsync.model.folding import fold
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip

BATCHES = (8, 16)
ROUNDS = 3

Draw = Callable[[], F32]


def main() -> None:
    torch.set_num_threads(1)
    model = seeded_generator(0)
    folded = fold(model)
    cases = [case for batch in BATCHES for case in compare(model, folded, batch)]
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    print(json.dumps({"threads": 1, "rounds": ROUNDS, "versions": versions, "cases": cases}))


def compare(model: Wav2Lip, folded: Wav2Lip, batch: int) -> list[dict[str, Any]]:
    """Milliseconds of CPU per frame, the least of rounds that take turns; differences from the plain network's output
    in levels of 255."""
    draw = torch.Generator().manual_seed(batch)
    mel = torch.rand(batch, 1, 80, 16, generator=draw) * 8 - 4
    faces = torch.rand(batch, 6, 96, 96, generator=draw)
    ways: dict[str, Draw] = {
        "plain": eager(model, mel, faces, torch.contiguous_format),
        "folded": eager(folded, mel, faces, torch.contiguous_format),
        "channels_last": eager(model, mel, faces, torch.channels_last),
        "folded, channels_last": eager(folded, mel, faces, torch.channels_last),
        "onnxruntime": runtime(model, mel, faces),
    }
    exact = ways["plain"]()
    differences = {name: float(np.abs(way() - exact).max()) * 255 for name, way in ways.items()}
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
            "max_difference_levels": round(differences[name], 4),
        }
        for name in ways
    ]


def eager(model: Wav2Lip, mel: Tensor, faces: Tensor, memory_format: torch.memory_format) -> Draw:
    laid_out = copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
    given = faces.contiguous(memory_format=memory_format)

    def draw() -> F32:
        with torch.inference_mode():
            return np.asarray(laid_out(mel, given).numpy(), np.float32)

    return draw


def runtime(model: Wav2Lip, mel: Tensor, faces: Tensor) -> Draw:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this exporter is the older of its two
        torch.onnx.export(model, (mel, faces), buffer, dynamo=False, input_names=["mel", "faces"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {"mel": mel.numpy(), "faces": faces.numpy()}
    return lambda: np.asarray(session.run(None, given)[0], np.float32)


if __name__ == "__main__":
    main()
