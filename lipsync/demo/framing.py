"""Where a detector would put the face box, worked out from the mesh, so that training crops look like the product's."""

from __future__ import annotations

import cv2
import numpy as np

from lipsync.core import F32, U8
from lipsync.demo.mesh import SKIN
from lipsync.demo.scene import Frame, Portrait, Pose

Box = tuple[int, int, int, int]


def face_rectangle(portrait: Portrait, pose: Pose, frame: Frame) -> F32:
    """Left, top, right, bottom of the face's own vertices in pixels, float32 (4,)."""
    mesh = portrait.person.mesh
    x, y, z = mesh.canonical.T
    face = (mesh.material == SKIN) & (z > 0.03) & (y < 0.232) & (y > 0.06) & (np.abs(x) < 0.078)
    points, _ = portrait.project(portrait.person.rest, pose, frame)
    return np.concatenate([points[face, :2].min(0), points[face, :2].max(0)]).astype(np.float32)


_MARGIN = np.array([0.010, 0.046, 0.022, -0.057])
_SPREAD = np.array([0.025, 0.035, 0.025, 0.025])
"""Left, top, right, bottom in face widths and heights beyond the rectangle: YuNet's and CenterFace's mean over the cast
in sixteen poses, and how much the two and the poses differ."""
_PAD_BELOW = 10
"""Pixels that the library adds below a detected box."""


def draw_box(rng: np.random.Generator, portrait: Portrait, pose: Pose, frame: Frame, *, spread: float = 1.0) -> Box:
    """A box as a detector might give it, padded as the library pads it, inside the frame."""
    x1, y1, x2, y2 = face_rectangle(portrait, pose, frame)
    left, top, right, bottom = _MARGIN + rng.normal(0, spread, 4) * _SPREAD
    width, height = x2 - x1, y2 - y1
    return (
        max(0, round(x1 - left * width)),
        max(0, round(y1 - top * height)),
        min(frame.width, round(x2 + right * width)),
        min(frame.height, round(y2 + bottom * height) + _PAD_BELOW),
    )


def crop96(image: U8) -> U8:
    """What the network sees of a box's pixels: 96 × 96, bilinear as the library does it."""
    return np.asarray(cv2.resize(image, (96, 96)), np.uint8)
