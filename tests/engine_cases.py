"""What the engine's tests share: a narrow generator's widths, random arguments, an engine on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipsync.core import U8
from lipsync.engine import Engine
from lipsync.model.wav2lip import Wav2Lip, Widths

NARROW = Widths(face=(4, 4, 8, 8, 12, 16, 16), voice=(4, 6, 8, 12, 20), decoder=(16, 12, 16, 12, 8, 8, 4), output=5)
Arguments = tuple[U8, Any, Any, Any]


def arguments(count: int, *, crops: int | None = None, columns: int = 120, seed: int = 0) -> Arguments:
    """Random crops, a random order of them, a random mel, and windows that also reach over both of its ends."""
    random = np.random.default_rng(seed)
    crops = crops or count
    return (
        random.integers(0, 256, (crops, 96, 96, 3), dtype=np.uint8),
        random.integers(0, crops, count).astype(np.int32),
        random.uniform(-4, 4, (80, columns)).astype(np.float32),
        random.integers(-24, columns + 8, count).astype(np.int32),
    )


def make(model: Wav2Lip, **options: Any) -> Engine:
    return Engine(model, device="cpu", **options)
