"""One full-resolution frame as it goes from the decoder to the encoder: YUV 4:2:0, 8 bits, changed only in a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import cv2
import numpy as np

from lipsync.core import F32, U8, Color
from lipsync.media.color import bgr_to_yuv, yuv_to_bgr

Pixels = TypeVar("Pixels", U8, F32)
Box = tuple[int, int, int, int]
"""x1 y1 x2 y2 in pixels, the far edges excluded."""
Planes = tuple[U8, U8, U8]
Place = tuple[slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Planes as shown: ``y`` (H, W), ``u`` and ``v`` (⌈H/2⌉, ⌈W/2⌉), all uint8; H and W may be odd.

    Planes may be views into a decoder's memory and are never written to: a changed picture is a new one.
    """

    y: U8
    u: U8
    v: U8
    color: Color

    @property
    def width(self) -> int:
        return int(self.y.shape[1])

    @property
    def height(self) -> int:
        return int(self.y.shape[0])

    @property
    def nbytes(self) -> int:
        return self.y.nbytes + self.u.nbytes + self.v.nbytes

    def bgr(self, box: Box | None = None) -> U8:
        """(h, w, 3) BGR of the whole picture, or of the box: then equal to that part of the whole, at the box's cost.

        Chroma is interpolated linearly between cell centres. Raises ValueError for a box that is not inside.
        """
        x1, y1, x2, y2 = self._checked(box)
        left, right = max(0, x1 // 2 - 1), min(self.u.shape[1], (x2 + 1) // 2 + 1)
        top, bottom = max(0, y1 // 2 - 1), min(self.u.shape[0], (y2 + 1) // 2 + 1)
        size = (2 * (right - left), 2 * (bottom - top))
        wanted = np.s_[y1 - 2 * top : y2 - 2 * top, x1 - 2 * left : x2 - 2 * left]
        u = cv2.resize(self.u[top:bottom, left:right], size, interpolation=cv2.INTER_LINEAR)
        v = cv2.resize(self.v[top:bottom, left:right], size, interpolation=cv2.INTER_LINEAR)
        return yuv_to_bgr(self.y[y1:y2, x1:x2], cast(U8, u)[wanted], cast(U8, v)[wanted], self.color)

    def with_patch(self, box: Box, bgr: U8, alpha: F32 | None = None) -> Patched:
        """A new picture with ``bgr`` (h, w, 3) in the box; ``alpha`` (h, w) float32 in 0…1 blends it in.

        All samples outside the box keep their values; a chroma cell that the box covers in part is blended by how
        much. Raises ValueError for a box that is not inside, or shapes that do not fit it.
        """
        x1, y1, x2, y2 = box = self._checked(box)
        if bgr.shape != (y2 - y1, x2 - x1, 3) or (alpha is not None and alpha.shape != bgr.shape[:2]):
            raise ValueError(f"patch {bgr.shape} or alpha does not fit the box {box}")
        luma = _channel(bgr_to_yuv(bgr, self.color), 0)
        y = luma if alpha is None else _blend(self.y[y1:y2, x1:x2], luma, alpha)

        pad = (y1 % 2, y2 % 2, x1 % 2, x2 % 2)
        new = bgr_to_yuv(_halve(_pad(bgr, pad)), self.color)
        cover = self._cover(box, alpha, pad)
        u, v = _channel(new, 1), _channel(new, 2)
        if cover is not None:
            cells = _cells(box)
            u, v = _blend(self.u[cells], u, cover), _blend(self.v[cells], v, cover)
        return Patched(self, box, (y, u, v))

    @classmethod
    def from_bgr(cls, bgr: U8, color: Color | None = None) -> Picture:
        """(H, W, 3) uint8 BGR as a picture, BT.709 in limited range unless said; chroma is the mean of its cell."""
        color = color or Color()
        y = _channel(bgr_to_yuv(bgr, color), 0)
        small = bgr_to_yuv(_halve(_pad(bgr, (0, bgr.shape[0] % 2, 0, bgr.shape[1] % 2))), color)
        return cls(y, _channel(small, 1), _channel(small, 2), color)

    def _checked(self, box: Box | None) -> Box:
        if box is None:
            return 0, 0, self.width, self.height
        x1, y1, x2, y2 = (int(edge) for edge in box)
        if not (0 <= x1 < x2 <= self.width and 0 <= y1 < y2 <= self.height):
            raise ValueError(f"box {box} is not inside a picture of {self.width}×{self.height}")
        return x1, y1, x2, y2

    def _cover(self, box: Box, alpha: F32 | None, pad: Box) -> F32 | None:
        """How much of each chroma cell is replaced, or None where all of every cell is."""
        _, _, x2, y2 = box
        past = (0, pad[1] if y2 == self.height else 0, 0, pad[3] if x2 == self.width else 0)
        inside = (pad[0], pad[1] - past[1], pad[2], pad[3] - past[3])
        if alpha is None:
            if not any(inside):
                return None
            alpha = np.ones((y2 - box[1], x2 - box[0]), np.float32)
        weights = _pad(np.asarray(alpha, np.float32), past)  # beyond the picture's own edge nothing is left uncovered
        return _halve(cast(F32, cv2.copyMakeBorder(weights, *inside, cv2.BORDER_CONSTANT, value=0.0)))


class Patched(Picture):
    """A picture that differs from ``base`` in ``box`` alone; whole planes are made when they are asked for."""

    __slots__ = ("_pieces", "_whole", "base", "box")

    base: Picture
    box: Box
    _pieces: Planes
    _whole: Planes | None

    def __init__(self, base: Picture, box: Box, pieces: Planes) -> None:
        """``pieces`` are the box's luma and the chroma cells that it touches."""
        for name, value in (("color", base.color), ("base", base), ("box", box), ("_pieces", pieces), ("_whole", None)):
            object.__setattr__(self, name, value)

    @property
    def y(self) -> U8:
        return self._planes[0]

    @property
    def u(self) -> U8:
        return self._planes[1]

    @property
    def v(self) -> U8:
        return self._planes[2]

    @property
    def width(self) -> int:
        return self.base.width

    @property
    def height(self) -> int:
        return self.base.height

    def draw_onto(self, planes: Planes) -> None:
        """Turns writable planes that show ``base`` in the box into this picture's."""
        for plane, place, piece in zip(planes, places(self.box), self._pieces, strict=True):
            plane[place] = piece

    @property
    def _planes(self) -> Planes:
        whole = self._whole
        if whole is None:
            whole = (self.base.y.copy(), self.base.u.copy(), self.base.v.copy())
            self.draw_onto(whole)
            object.__setattr__(self, "_whole", whole)
        return whole


def places(box: Box) -> tuple[Place, Place, Place]:
    """Where a box lies in each plane: its luma, and every chroma cell that it touches."""
    x1, y1, x2, y2 = box
    return np.s_[y1:y2, x1:x2], _cells(box), _cells(box)


def _cells(box: Box) -> Place:
    x1, y1, x2, y2 = box
    return np.s_[y1 // 2 : (y2 + 1) // 2, x1 // 2 : (x2 + 1) // 2]


def _pad(pixels: Pixels, pad: Box) -> Pixels:
    """Edge pixels repeated at top, bottom, left, right."""
    return cast(Pixels, cv2.copyMakeBorder(pixels, *pad, cv2.BORDER_REPLICATE)) if any(pad) else pixels


def _halve(pixels: Pixels) -> Pixels:
    """The mean of each 2×2 cell."""
    size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    return cast(Pixels, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _channel(pixels: U8, number: int) -> U8:
    return cast(U8, cv2.extractChannel(pixels, number))


def _blend(old: U8, new: U8, weight: F32) -> U8:
    step = cv2.multiply(cv2.subtract(new, old, dtype=cv2.CV_32F), weight)
    return np.asarray(cv2.add(old, step, dtype=cv2.CV_8U), dtype=np.uint8)
