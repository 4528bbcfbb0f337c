"""The reference's geometry options on planes: divide the size, turn clockwise, cut; and the turn of rotation tags."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import cv2
import numpy as np

from lipsync.core import U8, VideoInfo
from lipsync.errors import InvalidOption
from lipsync.media.picture import Box, Picture
from lipsync.options import FourInts

_CV2_TURN = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is done to a video's upright frames before anything else, in this order; images are left as they are.

    ``resize_factor`` divides width and height (rounding down), ``rotate`` turns 90 degrees clockwise, ``crop`` is
    top bottom left right in the pixels after that, -1 for the edge.
    """

    resize_factor: int = 1
    rotate: bool = False
    crop: FourInts | None = None

    @property
    def changes_nothing(self) -> bool:
        return self == Geometry()

    def size(self, info: VideoInfo) -> tuple[int, int]:
        """Width and height of the frames as shown afterwards. Raises InvalidOption where nothing is left."""
        width, height = self._turned_size(info)
        if self.crop is None:
            return width, height
        x1, y1, x2, y2 = self._crop_box(width, height)
        return x2 - x1, y2 - y1

    def pixel_aspect(self, info: VideoInfo) -> Fraction:
        """Width over height of a pixel of the frames as shown afterwards."""
        return 1 / info.pixel_aspect if self.rotate else info.pixel_aspect

    def apply(self, picture: Picture, info: VideoInfo) -> Picture:
        """The picture, upright and of the size that ``info`` says, after this geometry."""
        width, height = info.width // self.resize_factor, info.height // self.resize_factor
        if (width, height) != (picture.width, picture.height):
            picture = resize(picture, width, height)
        if self.rotate:
            picture = turn(picture, 90)
        return picture if self.crop is None else cut(picture, self._crop_box(picture.width, picture.height))

    def _turned_size(self, info: VideoInfo) -> tuple[int, int]:
        width, height = info.width // self.resize_factor, info.height // self.resize_factor
        if width < 2 or height < 2:
            raise InvalidOption(
                f"resize_factor={self.resize_factor} leaves {width}×{height} of {info.width}×{info.height} pixels. "
                "Take a smaller factor."
            )
        return (height, width) if self.rotate else (width, height)

    def _crop_box(self, width: int, height: int) -> Box:
        assert self.crop is not None
        top, bottom, left, right = self.crop
        box = (
            min(max(0, left), width),
            min(max(0, top), height),
            width if right == -1 else min(right, width),
            height if bottom == -1 else min(bottom, height),
        )
        if box[0] + 2 > box[2] or box[1] + 2 > box[3]:
            raise InvalidOption(
                f"crop (top bottom left right) {self.crop} leaves nothing of a picture of {width}×{height} pixels. "
                "Give edges inside the picture; -1 means the far edge."
            )
        return box


def turn(picture: Picture, degrees: int) -> Picture:
    """The picture turned clockwise by 0, 90, 180 or 270 degrees."""
    if degrees == 0:
        return picture
    y, u, v = (turn_pixels(plane, degrees) for plane in (picture.y, picture.u, picture.v))
    # an odd side that is turned around no longer begins at a chroma cell's edge
    if degrees in (180, 270) and y.shape[0] % 2:
        u, v = _between_cells(u, 0), _between_cells(v, 0)
    if degrees in (90, 180) and y.shape[1] % 2:
        u, v = _between_cells(u, 1), _between_cells(v, 1)
    return Picture(y, u, v, picture.color)


def mirror(picture: Picture) -> Picture:
    """The picture flipped left to right."""
    y, u, v = (mirror_pixels(plane) for plane in (picture.y, picture.u, picture.v))
    if y.shape[1] % 2:
        u, v = _between_cells(u, 1), _between_cells(v, 1)
    return Picture(y, u, v, picture.color)


def mirror_pixels(pixels: U8) -> U8:
    """(h, w) or (h, w, 3) flipped left to right."""
    return cast(U8, cv2.flip(pixels, 1))


def turn_pixels(pixels: U8, degrees: int) -> U8:
    """(h, w) or (h, w, 3) turned clockwise by 0, 90, 180 or 270 degrees."""
    return pixels if degrees == 0 else cast(U8, cv2.rotate(pixels, _CV2_TURN[degrees]))


def cut(picture: Picture, box: Box) -> Picture:
    """The part of the picture inside the box; views where its corner is even."""
    x1, y1, x2, y2 = box
    u, v = (plane[y1 // 2 : y2 // 2 + 1, x1 // 2 : x2 // 2 + 1] for plane in (picture.u, picture.v))
    for axis, start in ((0, y1), (1, x1)):
        if start % 2:
            u, v = _between_cells(u, axis), _between_cells(v, axis)
    rows, columns = (y2 - y1 + 1) // 2, (x2 - x1 + 1) // 2
    return Picture(picture.y[y1:y2, x1:x2], u[:rows, :columns], v[:rows, :columns], picture.color)


def resize(picture: Picture, width: int, height: int) -> Picture:
    """The picture at another size, linear as the reference's."""
    half = ((width + 1) // 2, (height + 1) // 2)
    y = cv2.resize(picture.y, (width, height), interpolation=cv2.INTER_LINEAR)
    u, v = (cv2.resize(plane, half, interpolation=cv2.INTER_LINEAR) for plane in (picture.u, picture.v))
    return Picture(cast(U8, y), cast(U8, u), cast(U8, v), picture.color)


def _between_cells(plane: U8, axis: int) -> U8:
    """Chroma for a grid that lies one luma pixel further: the mean of each cell and the next."""
    following = np.concatenate([plane[1:], plane[-1:]]) if axis == 0 else np.hstack([plane[:, 1:], plane[:, -1:]])
    return ((plane.astype(np.uint16) + following + 1) >> 1).astype(np.uint8)
