"""A box for every source frame, out of the boxes at anchors: interpolated within a scene, held at its ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lipsync.core import F64
from lipsync.faces.link import GAP_S, Linked


@dataclass(frozen=True, slots=True)
class Row:
    """One source frame's box (x1 y1 x2 y2, unpadded), or None; rows of one ``link`` show one face in one scene."""

    box: F64 | None
    link: int


class Filler:
    """Takes linked anchors in order; gives the rows of all source frames in order. Looks ahead by GAP_S.

    Between two anchors that show the face, boxes are interpolated linearly; with ``bridge``, also over anchors where
    it was not seen, if that took GAP_S at most. Any other frame does as its nearest anchor does, the earlier of two.
    """

    def __init__(self, *, bridge: bool) -> None:
        self._bridge = bridge
        self._open: list[Linked] = []  # an anchor whose row is given, then anchors without the face that may be bridged
        self._next = 0

    def feed(self, anchor: Linked) -> Iterator[Row]:
        if not self._open:
            yield from self._repeat(anchor, until=anchor.frame + 1)
            self._open = [anchor]
            return
        if anchor.face is None and self._may_bridge(anchor):
            self._open.append(anchor)
            return
        start = self._open[0]
        if anchor.face is not None and (len(self._open) == 1 or self._may_bridge(anchor)) and _same(start, anchor):
            yield from self._interpolate(start, anchor)
        else:
            yield from self._hold([*self._open, anchor])
        self._open = [anchor]

    def finish(self, frame_count: int) -> Iterator[Row]:
        """The rest, up to ``frame_count`` rows in all."""
        if self._open:
            yield from self._hold(self._open)
            yield from self._repeat(self._open[-1], until=frame_count)

    def _may_bridge(self, anchor: Linked) -> bool:
        start = self._open[0]
        near = anchor.time_s - start.time_s <= GAP_S + 1e-9
        return self._bridge and start.face is not None and start.link == anchor.link and near

    def _hold(self, anchors: list[Linked]) -> Iterator[Row]:
        for left, right in pairwise(anchors):
            yield from self._repeat(left, until=(left.frame + right.frame) // 2 + 1)
            yield from self._repeat(right, until=right.frame + 1)

    def _repeat(self, anchor: Linked, *, until: int) -> Iterator[Row]:
        row = Row(_box(anchor), anchor.link)
        for _ in range(self._next, until):
            yield row
        self._next = max(self._next, until)

    def _interpolate(self, left: Linked, right: Linked) -> Iterator[Row]:
        a, b = _box(left), _box(right)
        assert a is not None and b is not None
        for n in range(left.frame + 1, right.frame + 1):
            share = (n - left.frame) / (right.frame - left.frame)
            yield Row(a * (1 - share) + b * share, left.link)
        self._next = right.frame + 1


def _same(a: Linked, b: Linked) -> bool:
    return a.face is not None and b.face is not None and a.link == b.link


def _box(anchor: Linked) -> F64 | None:
    face = anchor.face
    return None if face is None else np.array([face.x1, face.y1, face.x2, face.y2], dtype=np.float64)
