"""Pads, and smoothing of boxes over time that crosses neither a scene cut nor a gap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from lipsync.core import F64, NO_BOX
from lipsync.faces.fill import Row
from lipsync.options import FourInts

Box = tuple[int, int, int, int]

SMALLEST_SIDE = 4.0
"""A padded and clipped box thinner than this, in pixels, is no box."""
REACH = 2
"""Each box becomes the mean of itself and this many neighbours on either side: 5 boxes, as many as the reference's."""


class Smoother(Protocol):
    """Takes rows in order; gives final boxes in order, NO_BOX where there is no face."""

    def feed(self, row: Row) -> Iterator[Box]: ...

    def finish(self) -> Iterator[Box]: ...


def pad_and_clip(box: F64, pads: FourInts, size: tuple[int, int]) -> F64:
    """(4,) x1 y1 x2 y2 grown by pads (top bottom left right) and cut at the frame's edges; the dtype is kept."""
    top, bottom, left, right = pads
    width, height = size
    x1, y1, x2, y2 = box
    padded: F64 = np.array(
        [max(0, x1 - left), max(0, y1 - top), min(width, x2 + right), min(height, y2 + bottom)], dtype=box.dtype
    )
    return padded


def is_degenerate(box: F64) -> bool:
    return bool(box[2] - box[0] < SMALLEST_SIDE or box[3] - box[1] < SMALLEST_SIDE)


class CentredMean:
    """The mean of the boxes around each frame, rounded to pixels; ``reach=0`` only rounds.

    The window shrinks on both sides alike near the end of a run (a scene, a gap), so that a steadily moving face is
    neither led nor followed; the reference's forward window leads by 2 frames. Looks ahead by ``reach`` frames.
    """

    def __init__(self, *, pads: FourInts, size: tuple[int, int], reach: int = REACH) -> None:
        self._pads = pads
        self._size = size
        self._reach = reach
        self._run: list[F64] = []  # boxes of this run, from at most ``reach`` before the next to be given
        self._behind = 0  # how many of them were given
        self._link = 0

    def feed(self, row: Row) -> Iterator[Box]:
        box = None if row.box is None else pad_and_clip(row.box, self._pads, self._size)
        if box is None or is_degenerate(box):
            yield from self.finish()
            yield NO_BOX
            return
        if row.link != self._link:
            yield from self.finish()
            self._link = row.link
        self._run.append(box)
        if len(self._run) > self._behind + self._reach:
            yield self._give()

    def finish(self) -> Iterator[Box]:
        while self._behind < len(self._run):
            yield self._give()
        self._run, self._behind = [], 0

    def _give(self) -> Box:
        reach = min(self._reach, self._behind, len(self._run) - 1 - self._behind)
        window = self._run[self._behind - reach : self._behind + reach + 1]
        x1, y1, x2, y2 = (int(edge) for edge in np.rint(np.mean(window, axis=0)))
        self._behind += 1
        if self._behind > self._reach:
            del self._run[0]
            self._behind -= 1
        return x1, y1, x2, y2
