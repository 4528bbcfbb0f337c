"""What the ladder draws where the caller brings nothing: seeded weights, and made-up crops and mel."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipsync.core import U8
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, Wav2Lip

Arguments = tuple[U8, Any, Any, Any]
"""As ``Engine.generate`` takes them."""

CROPS = 2048
"""So many different crops at most, shown again and again: more than the largest batch, so that each is copied."""
_SEED = 9


def seeded_model() -> Wav2Lip:
    """Weights of the published size that draw no faces, but answer every face and voice with another picture."""
    from lipsync.model.seeded import seeded_generator

    return seeded_generator(_SEED)


def made_up(count: int, *, seed: int = 0) -> Arguments:
    """Frames of a moving face and a voice: blotches and grain of any strength, and a mel that changes all the time."""
    random = np.random.default_rng(seed)
    crops = min(count, CROPS)
    coarse = random.random((crops, 12, 12, 3), np.float32)
    smooth = coarse.repeat(FACE_SIDE // 12, axis=1).repeat(FACE_SIDE // 12, axis=2)
    strength = random.random((crops, 1, 1, 1), np.float32) * 0.3
    grain = random.random((FACE_SIDE, FACE_SIDE, 3), np.float32)
    pictures = (255 * ((1 - strength) * smooth + strength * grain)).astype(np.uint8)
    mel = np.clip(random.normal(-1, 2, (MEL_BANDS, count * 16 // 5 + 16)), -4, 4).astype(np.float32)
    return pictures, np.arange(count) % crops, mel, np.arange(count) * 16 // 5
