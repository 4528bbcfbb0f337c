"""Putting a generated patch back into its frame: what a crop is, how a patch is pasted, and the visible label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from lipsync.cache import LruCache
from lipsync.core import F32, U8
from lipsync.media.picture import Picture
from lipsync.options import Options

CROP_SIDE = 96
Box = tuple[int, int, int, int]


def crop_face(picture: Picture, box: Box) -> U8:
    """What the generator sees of a frame: the box as (96, 96, 3) BGR, bilinear however much it shrinks."""
    sides = (CROP_SIDE, CROP_SIDE)
    return np.asarray(cv2.resize(picture.bgr(box), sides, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def fit_patch(patch: U8, box: Box) -> U8:
    """(96, 96, 3) patch to the box's size, bilinear."""
    x1, y1, x2, y2 = box
    return np.asarray(cv2.resize(patch, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def paste(picture: Picture, box: Box, patch: U8, options: Options) -> Picture:
    """A new picture with the patch in its box; samples outside the box are the old ones.

    ``blend="none"`` overwrites the box: the result's ``bgr()`` is then, pixel for pixel, what the reference has before
    it encodes. ``blend="feather"`` fades the patch in towards the box's borders and above the part that the network
    re-draws (the lower half), so that no seam shows and the eyes keep the source's sharpness.
    """
    x1, y1, x2, y2 = box
    fitted = fit_patch(patch, box)
    if options.blend == "feather":
        mask = feather_mask(x2 - x1, y2 - y1)
        hidden = _hidden_rows(x2 - x1, y2 - y1)
        hidden = max(0, hidden - (y1 + hidden) % 2)  # from a whole chroma cell on
        return picture.with_patch((x1, y1 + hidden, x2, y2), fitted[hidden:], mask[hidden:])
    planes = picture.with_patch(box, fitted)
    return Overwritten(planes.y, planes.u, planes.v, planes.color, picture, box, fitted)


@dataclass(frozen=True, slots=True, eq=False)
class Overwritten(Picture):
    """A picture whose box was overwritten in BGR. Its planes are for the encoder; ``bgr`` is free of their rounding."""

    source: Picture
    box: Box
    fitted: U8

    def bgr(self, box: Box | None = None) -> U8:
        """See ``Picture.bgr``; the overwritten box holds exactly the pixels that were pasted."""
        x1, y1, x2, y2 = self.box
        frame = self.source.bgr()
        frame[y1:y2, x1:x2] = self.fitted
        left, top, right, bottom = box or (0, 0, self.width, self.height)
        return frame[top:bottom, left:right]


_MASKS: LruCache[F32] = LruCache(256, capacity_bytes=32_000_000, ttl_s=900.0)
"""In bytes, since a moving face has a size of its own in every frame, and one that fills a 4K frame 20 MB."""


def feather_mask(width: int, height: int) -> F32:
    """(height, width) float32 in 0..1: how much of the patch shows. Full over the lower half, fading to the borders."""
    mask = _MASKS.get((width, height))
    if mask is None:
        mask = _feather_mask(width, height)
        _MASKS.put((width, height), mask, byte_count=mask.nbytes)
    return mask


def _feather_mask(width: int, height: int) -> F32:
    across = np.minimum(_ramp(width, 0.0, 0.14), _ramp(width, 0.0, 0.14)[::-1])
    # WHY: eyes lie at 0.28 to 0.42 of a detected and padded box, and a patch of 96 pixels would blur them
    down = np.minimum(_ramp(height, 0.40, 0.50), _ramp(height, 0.0, 0.09)[::-1])
    mask = np.outer(down, across).astype(np.float32)
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=256)
def _hidden_rows(width: int, height: int) -> int:
    """How many of the mask's rows, from the top, show nothing of the patch."""
    return int(np.argmax(feather_mask(width, height).any(axis=1)))


def _ramp(length: int, start: float, stop: float) -> F32:
    """(length,) smooth step from 0 at ``start`` to 1 at ``stop``, both as shares of the length."""
    at = (np.arange(length, dtype=np.float32) + 0.5) / length
    rise = np.clip((at - start) / (stop - start), 0.0, 1.0)
    return (rise * rise * (3.0 - 2.0 * rise)).astype(np.float32)


LABEL_TEXT = "AI-generated"


def draw_label(picture: Picture) -> Picture:
    """A new picture with a visible 'AI-generated' label in its lower left corner."""
    mask = _label_mask(picture.width, picture.height)
    height, width = mask.shape
    x, y = _label_margin(picture.height), picture.height - _label_margin(picture.height) - height
    plate = np.where(mask[..., None] > 0, np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    alpha = np.where(mask > 0, np.float32(0.9), np.float32(0.45))
    x2, y1, y2 = min(picture.width, x + width), max(0, y), min(picture.height, max(0, y) + height)
    part = np.s_[: y2 - y1, : x2 - x]
    return picture.with_patch((x, y1, x2, y2), np.ascontiguousarray(plate[part]), np.ascontiguousarray(alpha[part]))


def _label_margin(height: int) -> int:
    return max(2, height // 60) // 2 * 2


@lru_cache(maxsize=16)
def _label_mask(width: int, height: int) -> U8:
    scale, thickness = max(0.3, height / 900), max(1, round(height / 500))
    (text_width, text_height), baseline = cv2.getTextSize(LABEL_TEXT, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    pad = max(2, text_height // 2)
    mask = np.zeros((text_height + baseline + 2 * pad, min(width, text_width + 2 * pad)), np.uint8)
    origin = (pad, pad + text_height)
    cv2.putText(mask, LABEL_TEXT, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    mask = np.where(mask > 127, np.uint8(255), np.uint8(0))
    mask.flags.writeable = False
    return mask
