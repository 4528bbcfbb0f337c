"""Stand-ins with behaviour: a generator whose patch says what it heard, a detector that is told where the face is."""

from __future__ import annotations

import numpy as np

from lipsync.core import F32, I32, U8, Claim, Detection
from tests.media_factory import draw_number

WINDOW = 16
BEFORE = 2000
"""Added to a window's start before it is drawn, so that windows that begin before the voice can be drawn too."""


class HearingGenerator:
    """Draws into each patch which window of the voice it was given, found by looking at the mel's *content*.

    ``whole`` is the voice's mel, made independently. A window is told apart by its content, so a wrong slice, a wrong
    offset or another request's voice is seen. Windows of silence alone are drawn as number 0.
    """

    def __init__(self, whole: F32) -> None:
        padding = np.full((80, BEFORE), -4.0, np.float32)
        padded = np.concatenate([padding, whole, padding], axis=1)
        starts = np.arange(padded.shape[1] - WINDOW)
        self._windows = np.stack([padded[::8, s : s + WINDOW].ravel() for s in starts])
        self.crops_seen: list[int] = []
        self.batches: list[int] = []

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        self.crops_seen.append(len(crops))
        self.batches.append(len(crop_index))
        patches = crops[crop_index].copy()
        for patch, start in zip(patches, mel_starts.tolist(), strict=True):
            draw_number(patch, self._recognise(window_of(mel, start)))
        return patches

    def _recognise(self, window: F32) -> int:
        if (window == -4.0).all():
            return 0
        distance = np.abs(self._windows - window[::8].ravel()).max(axis=1)
        best = int(distance.argmin())
        assert distance[best] < 1e-3, f"no window of this voice sounds like that ({distance[best]:.3f} apart)"
        return best


class Copying:
    """Draws the crop it was given: for tests that are not about mouths."""

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        return crops[crop_index]


def window_of(mel: F32, start: int) -> F32:
    """Sixteen columns from ``start``; silence where there are none."""
    window = np.full((80, WINDOW), -4.0, np.float32)
    low, high = max(0, start), min(mel.shape[1], start + WINDOW)
    if low < high:
        window[:, low - start : high - start] = mel[:, low:high]
    return window


class ToldDetector:
    """Finds the faces it was told of: one list of detections for every frame it is shown."""

    name = "told"

    def __init__(self, *faces: Detection) -> None:
        self._faces = list(faces)
        self.frames_seen = 0

    def detect(self, frames: list[U8]) -> list[list[Detection]]:
        self.frames_seen += len(frames)
        return [self._faces for _ in frames]
