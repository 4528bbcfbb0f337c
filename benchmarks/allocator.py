"""What freed memory costs the generator: CPU time per frame by what the process asked of the system's allocator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.line import cpu_ms
from lipsync.allocator import return_large_blocks, trim_regularly
from lipsync.checkpoints import load_generator
from lipsync.engine import Engine
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip

BATCH, ROUNDS, PASSES = 8, 3, 8
ASKED: dict[str, Callable[[], object]] = {
    "as glibc has it": lambda: None,
    "large blocks at once": return_large_blocks,
    "every two seconds": trim_regularly,
}
MODELS: dict[str, Callable[[], Wav2Lip]] = {
    "published": lambda: seeded_generator(0),
    "packaged": lambda: load_generator(Path(str(files("lipsync") / "assets" / "generator.safetensors"))),
}


def process(model: str, asked: str) -> float:
    """CPU milliseconds a frame, the middle of several batches."""
    ASKED[asked]()
    engine = Engine(MODELS[model](), device="cpu", threads=1)
    draw = np.random.default_rng(0)
    crops = draw.integers(0, 256, (BATCH, 96, 96, 3), dtype=np.uint8)
    mel = draw.uniform(-4, 4, (80, 16 + BATCH)).astype(np.float32)
    each = np.arange(BATCH, dtype=np.int32)
    passes = [cpu_ms(lambda: engine.generate(crops, each, mel, each)) / BATCH for _ in range(2 + PASSES)]
    return median(passes[2:])


def measure() -> dict[str, Any]:
    spent: dict[tuple[str, str], list[float]] = {(model, asked): [] for model in MODELS for asked in ASKED}
    for _ in range(ROUNDS):
        for (model, asked), passes in spent.items():
            command = [sys.executable, "-m", "benchmarks.allocator", model, asked]
            passes.append(float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    cases = [{"generator": model, "asked": asked, "ms": round(min(ms), 2)} for (model, asked), ms in spent.items()]
    return {"batch": BATCH, "rounds": ROUNDS, "torch": torch.__version__, "cases": cases}


def main() -> None:
    arguments = sys.argv[1:]
    print(process(*arguments) if arguments else json.dumps(measure()))


if __name__ == "__main__":
    main()
