"""The reference's own boxes, for ``compat="reference"``: whole pixels throughout, and smoothing in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lipsync.core import F64, NO_BOX
from lipsync.faces.fill import Row
from lipsync.faces.smooth import Box, is_degenerate, pad_and_clip
from lipsync.options import FourInts

WINDOW = 5


def truncate(box: F64) -> F64:
    """Negative edges to 0, all edges to whole pixels toward 0, as the reference does with what the detector says."""
    whole: F64 = np.trunc(np.maximum(box, 0.0))
    return whole


class ForwardMean:
    """Each box becomes the mean, cut to whole pixels, of itself and the next four; the last ones reuse smoothed boxes.

    The reference writes means into the array it reads from, and takes the last five rows where five no longer follow:
    so those windows hold boxes that are already smoothed. With fewer than five rows its slice starts at a negative
    index and takes the last 2 of 3, the last 1 of 4, all of 1 or 2. A frame without a face, on which the reference
    gives up, ends a run here. Looks ahead by 4 frames.
    """

    def __init__(self, *, pads: FourInts, size: tuple[int, int], smooth: bool = True) -> None:
        self._pads = pads
        self._size = size
        self._smooth = smooth
        self._run: list[Box] = []  # the run's last rows: at most five, of which the first is smoothed and given

    def feed(self, row: Row) -> Iterator[Box]:
        box = None if row.box is None else pad_and_clip(truncate(row.box), self._pads, self._size)
        if box is None or is_degenerate(box):
            yield from self.finish()
            yield NO_BOX
            return
        x1, y1, x2, y2 = (int(edge) for edge in box)
        if not self._smooth:
            yield x1, y1, x2, y2
            return
        if len(self._run) == WINDOW:
            del self._run[0]
        self._run.append((x1, y1, x2, y2))
        if len(self._run) == WINDOW:
            self._run[0] = _mean(self._run)
            yield self._run[0]

    def finish(self) -> Iterator[Box]:
        rows, self._run = self._run, []
        n = len(rows)
        first = 1 if n == WINDOW else 0
        for i in range(first, n):
            rows[i] = _mean(rows[n - WINDOW :])
            yield rows[i]


def _mean(rows: list[Box]) -> Box:
    x1, y1, x2, y2 = (sum(edges) // len(rows) for edges in zip(*rows, strict=True))
    return x1, y1, x2, y2
