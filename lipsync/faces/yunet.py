"""The YuNet face detector, through OpenCV's FaceDetectorYN: small, quick on a CPU, five landmarks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lipsync.core import U8, Detection
from lipsync.errors import DetectorUnavailable

SCORE_THRESHOLD = 0.65
"""OpenCV's own 0.9 loses tilted and noisy faces (12 % recall at 45 degrees); below 0.6 false hits multiply."""
OVERLAP_THRESHOLD = 0.3
MOST_CANDIDATES = 5000
SMALLEST_SIDE = 64
"""Frames are not halved below this."""


class YuNet:
    """Takes frames of any size. Every thread has its own network, so that threads never wait for each other."""

    name = "yunet"

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._of_thread = threading.local()
        self._network()  # fails here rather than on the first frame

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        """Faces of each frame, best first; see Detector."""
        return [self._detect_one(frame) for frame in frames]

    def _detect_one(self, frame: U8) -> list[Detection]:
        faces = self._look(frame)
        if faces or min(frame.shape[:2]) < 2 * SMALLEST_SIDE:
            return faces
        # WHY: noise is this network's weak spot. Halving averages it away: of 11 frames with noise of sigma 60 it
        # found the face in none at full size and in all at half, for a quarter of the time.
        half = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
        scale = (frame.shape[1] / half.shape[1], frame.shape[0] / half.shape[0])
        return [face.scaled(*scale) for face in self._look(np.asarray(half, np.uint8))]

    def _look(self, frame: U8) -> list[Detection]:
        network = self._network()
        network.setInputSize((frame.shape[1], frame.shape[0]))
        _, rows = network.detect(np.ascontiguousarray(frame))
        faces = [_as_detection(row.tolist()) for row in rows] if rows is not None else []
        return sorted(faces, key=lambda face: -face.score)

    def _network(self) -> Any:
        if not hasattr(self._of_thread, "network"):
            self._of_thread.network = _load(self._weights)
        return self._of_thread.network


def _load(weights: Path) -> Any:
    advice = "Run 'lipsync weights pull yunet', or use detector=centerface."
    if not weights.is_file():
        raise DetectorUnavailable(f"There are no YuNet weights at {weights}. {advice}")
    try:
        return cv2.FaceDetectorYN.create(
            str(weights), "", (320, 320), SCORE_THRESHOLD, OVERLAP_THRESHOLD, MOST_CANDIDATES
        )
    except cv2.error as error:
        raise DetectorUnavailable(
            f"OpenCV {cv2.__version__} cannot read YuNet from {weights} ({error.err}); it needs OpenCV 5 and the "
            f"network exported for any frame size. {advice}"
        ) from error


def _as_detection(row: list[float]) -> Detection:
    x, y, width, height = row[:4]
    landmarks = tuple((row[i], row[i + 1]) for i in range(4, 14, 2))
    return Detection(x, y, x + width, y + height, row[14], landmarks)
