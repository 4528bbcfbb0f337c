"""The S3FD face detector that the reference uses, in torch, with the user's own weights (``s3fd.pth``)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipsync.core import F32, I64, U8, Detection
from lipsync.engine.device import is_out_of_memory
from lipsync.errors import DeviceOutOfMemory, DeviceUnavailable, EngineError
from lipsync.faces.overlap import suppress
from lipsync.faces.s3fd_network import load_s3fd

CANDIDATE_THRESHOLD = 0.05
SCORE_THRESHOLD = 0.5
OVERLAP_THRESHOLD = 0.3
STRIDES = (4, 8, 16, 32, 64, 128)
ANCHOR_SIDE = 4
"""An anchor's side, in strides."""
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
MEANS = (104.0, 117.0, 123.0)
"""Subtracted from R, G, B in this order, although they are the means of B, G, R: the weights expect it so."""

_log = logging.getLogger(__name__)


class S3FD:
    """Frames of one size in batches of ``batch_size``; a batch that does not fit into memory is halved, for good.

    No landmarks. Raises CheckpointError for wrong weights, DeviceUnavailable, DeviceOutOfMemory where not even one
    frame fits, and EngineError with the cause for any other failure of the device.
    """

    name = "s3fd"

    def __init__(self, weights: Path, *, device: str = "cpu", batch_size: int = 16) -> None:
        self.batch_size = batch_size
        self._device = _find_device(device)
        self._network = load_s3fd(weights).to(self._device)
        self._lock = threading.Lock()

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        """Faces of each frame, best first; see Detector."""
        with self._lock:
            return [faces for maps in self._run(frames) for faces in maps]

    def _run(self, frames: Sequence[U8]) -> Iterator[list[list[Detection]]]:
        first = 0
        while first < len(frames):
            batch = frames[first : first + self.batch_size]
            try:
                yield self._look(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise EngineError(f"Face detection failed on {self._device}: {error}") from error
                self._halve(error, batch)
                continue
            first += len(batch)

    def _halve(self, error: Exception, batch: Sequence[U8]) -> None:
        if len(batch) == 1:
            height, width = batch[0].shape[:2]
            raise DeviceOutOfMemory(
                f"Face detection of one {width}×{height} frame does not fit into the memory of {self._device}: use "
                f"resize_factor, detector=yunet, or another device. ({error})"
            ) from error
        self.batch_size = len(batch) // 2
        _log.warning("Face detection of %d frames ran out of memory; the batch is now %d.", len(batch), self.batch_size)
        torch.cuda.empty_cache()

    def _look(self, frames: Sequence[U8]) -> list[list[Detection]]:
        with torch.inference_mode():
            maps = [each.float().cpu().numpy() for each in self._network(as_input(frames).to(self._device))]
        return [decode([each[i] for each in maps]) for i in range(len(frames))]


def _find_device(device: str) -> torch.device:
    found = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(f"s3fd was asked to run on {device}, but torch sees no CUDA device: use device=cpu.")
    return found


def as_input(frames: Sequence[U8]) -> Tensor:
    """(B, 3, H, W) float32 of B BGR frames of one size: R, G, B less MEANS, not scaled."""
    pixels = torch.from_numpy(np.stack(frames)).flip(-1).to(torch.float32)
    return (pixels - torch.tensor(MEANS)).permute(0, 3, 1, 2).contiguous()


def decode(maps: Sequence[F32]) -> list[Detection]:
    """Faces of one frame, best first, from its 12 maps: class scores (2, h, w) and box offsets (4, h, w) per level."""
    boxes: list[F32] = []
    scores: list[F32] = []
    for stride, classes, offsets in zip(STRIDES, maps[0::2], maps[1::2], strict=True):
        score = _face_probability(classes)
        rows, columns = np.nonzero(score > CANDIDATE_THRESHOLD)
        boxes.append(_boxes_at(rows, columns, offsets[:, rows, columns], stride))
        scores.append(score[rows, columns])
    found, score = np.concatenate(boxes), np.concatenate(scores)
    kept = suppress(found, score, threshold=OVERLAP_THRESHOLD, extra_px=1.0)
    return [_as_detection(found[i], score[i]) for i in kept if score[i] > SCORE_THRESHOLD]


def _face_probability(classes: F32) -> F32:
    """Softmax of (background, face)."""
    shifted = np.exp(classes - classes.max(axis=0))
    probability: F32 = shifted[1] / shifted.sum(axis=0)
    return probability


def _boxes_at(rows: I64, columns: I64, offsets: F32, stride: int) -> F32:
    """(n, 4) corners: each cell's square anchor, moved and grown by its offsets (4, n)."""
    side = ANCHOR_SIDE * stride
    anchors = np.stack([columns, rows]) * stride + stride / 2
    centre = anchors + CENTRE_VARIANCE * offsets[:2] * side
    size = side * np.exp(SIZE_VARIANCE * offsets[2:])
    corners: F32 = np.concatenate([centre - size / 2, centre + size / 2]).T.astype(np.float32)
    return corners


def _as_detection(box: F32, score: np.float32) -> Detection:
    x1, y1, x2, y2 = (float(edge) for edge in box)
    return Detection(x1, y1, x2, y2, float(score))
