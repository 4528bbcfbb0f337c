"""Reading a mouth off its pixels: a ridge regression from a view's mouth region to the actions drawn there."""

from __future__ import annotations

import cv2
import numpy as np

from lipsync.core import F32, U8
from lipsync.demo.actions import ACTIONS
from lipsync.demo.corpus import Corpus
from lipsync.demo.frames import ViewPainter, draw_actions

READ = ("jawOpen", "mouthFunnel", "mouthPucker")
_COLUMNS = [ACTIONS.index(name) for name in READ]


def features(pictures: U8) -> F32:
    """Mouth regions of (n, 96, 96, 3), smoothed and small, as rows."""
    small = [
        cv2.resize(cv2.GaussianBlur(p[44:95, 16:80], (0, 0), 0.8), (32, 26), interpolation=cv2.INTER_AREA).reshape(-1)
        for p in pictures
    ]
    return np.asarray(np.stack(small) / 64, np.float32)


class Ruler:
    """Knows one view: pictures (n, 96, 96, 3) in, jaw, funnel and pucker (n, 3) out."""

    def __init__(self, painter: ViewPainter, corpus: Corpus, rng: np.random.Generator, *, count: int = 140) -> None:
        actions = draw_actions(rng, corpus, count)
        shown = features(np.stack([painter.paint(row)[0] for row in actions]))
        wanted = actions[:, _COLUMNS]
        self._middle, self._base = shown.mean(0), wanted.mean(0)
        centred = shown - self._middle
        self._weight = centred.T @ np.linalg.solve(
            centred @ centred.T + 3 * np.eye(count, dtype=np.float32), wanted - self._base
        )

    def read(self, pictures: U8) -> F32:
        """Jaw, funnel and pucker, (n, 3)."""
        return np.asarray((features(pictures) - self._middle) @ self._weight + self._base, np.float32)
