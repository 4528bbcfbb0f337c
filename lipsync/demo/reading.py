"""Reading a mouth off its pixels: how far the jaw is open and the lips are rounded, for one view of one face."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lipsync.core import F32, U8

READ = ("jawOpen", "mouthFunnel", "mouthPucker")
"""What is read, in this order."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A linear map from a view's mouth region to its actions; fitted on rendered frames, good for that view alone."""

    middle: F32  # (P,)
    weight: F32  # (P, 3)
    base: F32  # (3,)

    def read(self, crops: U8) -> F32:
        """Jaw, funnel and pucker (n, 3) of BGR crops (n, 96, 96, 3)."""
        return np.asarray((features(crops) - self.middle) @ self.weight + self.base, np.float32)


def features(crops: U8) -> F32:
    """Mouth regions of (n, 96, 96, 3), smoothed and made small, as rows (n, P)."""
    small = [
        cv2.resize(cv2.GaussianBlur(crop[44:95, 16:80], (0, 0), 0.8), (32, 26), interpolation=cv2.INTER_AREA)
        for crop in crops
    ]
    return np.asarray(np.stack(small).reshape(len(small), -1) / 64, np.float32)


def fit(crops: U8, actions: F32, *, ridge: float = 3.0) -> Reader:
    """A reader from crops (n, 96, 96, 3) and the jaw, funnel and pucker (n, 3) that they show."""
    shown = features(crops)
    middle, base = shown.mean(0), actions.mean(0)
    centred = shown - middle
    inner = centred @ centred.T + ridge * np.eye(len(crops), dtype=np.float32)
    weight = centred.T @ np.linalg.solve(inner, actions - base)
    return Reader(middle, np.asarray(weight, np.float32), np.asarray(base, np.float32))
