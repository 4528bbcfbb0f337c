"""From phonemes to what the mouth does: viseme shapes, coarticulation, closures, and the lead of lips over sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lipsync.core import F32
from lipsync.demo.actions import ACTIONS
from lipsync.demo.espeak import Phoneme

Shape = Mapping[str, float]

LEAD_S = 0.04
"""Lips are there before the sound: a mouth at time t shows what is heard at t + 40 ms.

Human lips lead by as much and more, and so does the published checkpoint as it is commonly run.
"""
TRACK_HZ = 80
"""One row of actions for each mel column: row c is the mouth at c / 80 s, when the window of column c begins."""

SHAPES: Mapping[str, Shape] = {
    "silence": {},
    "p": {"mouthPress": 0.35, "mouthRollUpper": 0.25, "mouthRollLower": 0.25},
    "f": {"jawOpen": 0.09, "mouthRollLower": 0.6, "mouthUpperUp": 0.35},
    "th": {"jawOpen": 0.21, "mouthLowerDown": 0.25, "mouthUpperUp": 0.15},
    "t": {"jawOpen": 0.17, "mouthStretch": 0.2, "mouthLowerDown": 0.25, "mouthUpperUp": 0.12},
    "s": {"jawOpen": 0.08, "mouthStretch": 0.35, "mouthLowerDown": 0.35, "mouthUpperUp": 0.3},
    "sh": {"jawOpen": 0.13, "mouthFunnel": 0.7, "mouthPucker": 0.15},
    "k": {"jawOpen": 0.29, "mouthLowerDown": 0.1},
    "r": {"jawOpen": 0.21, "mouthFunnel": 0.4, "mouthPucker": 0.3},
    "w": {"jawOpen": 0.10, "mouthPucker": 0.9, "mouthFunnel": 0.3},
    "u": {"jawOpen": 0.17, "mouthPucker": 0.8, "mouthFunnel": 0.35},
    "o": {"jawOpen": 0.49, "mouthFunnel": 0.6, "mouthPucker": 0.3},
    "a": {"jawOpen": 0.98, "mouthLowerDown": 0.1},
    "e": {"jawOpen": 0.52, "mouthSmile": 0.25, "mouthStretch": 0.2, "mouthLowerDown": 0.1},
    "i": {"jawOpen": 0.26, "mouthSmile": 0.45, "mouthStretch": 0.35, "mouthLowerDown": 0.15, "mouthUpperUp": 0.1},
    "uh": {"jawOpen": 0.39, "mouthLowerDown": 0.1},
}
"""Viseme -> full action weights."""

_WHOLE: Mapping[str, tuple[str, ...]] = {
    "aI": ("a", "i"), "aU": ("a", "u"), "AU": ("a", "u"), "oU": ("o", "u"), "OI": ("o", "i"), "OY": ("o", "i"),
    "eI": ("e", "i"), "eU": ("e", "u"), "aI@": ("a", "i", "uh"), "aI3": ("a", "i", "uh"), "aU@": ("a", "u", "uh"),
    "i@": ("i", "uh"), "i@3": ("i", "r"), "e@": ("e", "uh"), "U@": ("u", "uh"), "A@": ("a", "r"), "O@": ("o", "r"),
    "o@": ("o", "r"), "3:": ("r",), "3": ("r",), "IR": ("r",), "VR": ("r",), "N": ("k",), "a#": ("uh",),
    "w": ("w",), "j": ("i",),
}  # fmt: skip
_BY_FIRST_SIGN = (
    ("pbm", "p"), ("fvB", "f"), ("TD", "th"), ("SZ", "sh"), ("sz", "s"), ("tdnlNL^", "t"), ("kgxhQXCH?G(;", "k"),
    ("rR*", "r"), ("w", "w"), ("uUyYW", "u"), ("oO", "o"), ("0aAV", "a"), ("eE", "e"), ("iI", "i"),
)  # fmt: skip
_TICK_HZ = 400
_CLOSING_S = 0.03
"""Lips begin to shut this long before a p, b or m."""


def visemes(phoneme: str) -> tuple[str, ...]:
    """The mouth shapes of one phoneme in espeak-ng's alphabet, in order; diphthongs have several."""
    name = phoneme.strip("'`,.:!|\"-%=") if not phoneme.startswith("_") else ""
    if not name:
        return ("silence",)
    if phoneme.strip("'`,") in _WHOLE:
        return _WHOLE[phoneme.strip("'`,")]
    if name in _WHOLE:
        return _WHOLE[name]
    if name[:2] in ("tS", "dZ", "ts") or name[0] in "SZ":
        return ("s",) if name[:2] == "ts" else ("sh",)
    return (next((viseme for signs, viseme in _BY_FIRST_SIGN if name[0] in signs), "uh"),)


def action_track(phonemes: Sequence[Phoneme], duration_s: float, *, lead_s: float = LEAD_S) -> F32:
    """What the mouth does while these phonemes sound: (ceil(80 s), len(ACTIONS)) float32, row c for time c / 80."""
    ticks = int(np.ceil(duration_s * _TICK_HZ)) + 2
    wanted, shut = _targets(phonemes, duration_s, ticks)
    smooth = _smooth(wanted, 0.033 * _TICK_HZ)
    closing = np.clip(_smooth(shut[:, None], 0.018 * _TICK_HZ) * 1.35, 0, 1)
    free = np.array([name not in SHAPES["p"] for name in ACTIONS])
    smooth[:, free] *= 1 - closing
    times = (np.arange(int(np.ceil(duration_s * TRACK_HZ))) / TRACK_HZ + lead_s) * _TICK_HZ
    return np.stack([np.interp(times, np.arange(ticks), row) for row in smooth.T], 1).astype(np.float32)


def _targets(phonemes: Sequence[Phoneme], duration_s: float, ticks: int) -> tuple[F32, F32]:
    wanted, shut = np.zeros((ticks, len(ACTIONS)), np.float32), np.zeros(ticks, np.float32)
    for n, phoneme in enumerate(phonemes):
        until = phonemes[n + 1].start_s if n + 1 < len(phonemes) else min(duration_s, phoneme.start_s + 0.08)
        shapes = visemes(phoneme.name)
        for k, viseme in enumerate(shapes):
            share = (until - phoneme.start_s) / len(shapes)
            first = round((phoneme.start_s + k * share) * _TICK_HZ)
            stop = max(round((phoneme.start_s + (k + 1) * share) * _TICK_HZ), first + 1)
            if viseme == "p":
                first = max(0, first - round(_CLOSING_S * _TICK_HZ))
                shut[first:stop] = 1
            wanted[first:stop] = [SHAPES[viseme].get(name, 0.0) for name in ACTIONS]
    return wanted, shut


def _smooth(rows: F32, sigma: float) -> F32:
    radius = int(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(rows, ((radius, radius), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel, "valid") for column in padded.T], 1).astype(np.float32)
