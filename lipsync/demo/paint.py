"""What is painted on a head: a frontal map of skin, brows and stubble, and the strands of the hair."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lipsync.core import F32
from lipsync.demo.person import Colour, Looks

MAP_WIDTH_M, MAP_HEIGHT_M = 0.2, 0.28
"""The frontal map covers x from -0.1 to 0.1 and y from 0 to 0.28 of the canonical head."""
_SIZE = 1024


@dataclass(frozen=True, eq=False)
class Paint:
    """Textures in linear light."""

    front: F32  # (S, S, 3) RGB albedo seen from the front, rows from the top
    strands: F32  # (A, P) brightness of hair by angle about the crown and distance from it, around 1
    hair: F32  # (3,)
    lips: F32
    iris: F32
    cloth: F32


def linear(colour: Colour) -> F32:
    """An sRGB colour in linear light."""
    return np.asarray(colour, np.float32) ** np.float32(2.2)


def _noise(rng: np.random.Generator, cells: int, strength: float, size: tuple[int, int] = (_SIZE, _SIZE)) -> F32:
    rough = rng.normal(0, strength, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC), np.float32)


def paint(looks: Looks, eyes: F32) -> Paint:
    """Textures for these looks; ``eyes`` (2, 2) are the canonical x, y of the eyes' centres."""
    rng = np.random.default_rng(looks.seed)
    rows, columns = np.mgrid[0:_SIZE, 0:_SIZE].astype(np.float32)
    x, y = (columns / _SIZE - 0.5) * MAP_WIDTH_M, MAP_HEIGHT_M * (1 - rows / _SIZE)
    skin = np.tile(linear(looks.skin), (_SIZE, _SIZE, 1))
    grain = _noise(rng, 10, 0.03) + _noise(rng, 60, 0.02) + _noise(rng, 400, 0.03)
    skin *= (1 + grain * np.clip((y - 0.004) / 0.02, 0, 1))[..., None]
    warm = _blobs(x, y, ((0.036, 0.135, 0.018), (0.0, 0.150, 0.012), (0.0, 0.093, 0.014)))
    skin *= 1 - warm[..., None] * np.array([0.0, 0.16, 0.13], np.float32)
    tired = _blobs(x, y, ((float(np.abs(eyes[:, 0]).mean()), float(eyes[:, 1].mean()) - 0.004, 0.013),))
    skin *= 1 - tired[..., None] * np.array([0.10, 0.20, 0.18], np.float32)
    if looks.freckles:
        spots = np.clip((_noise(rng, 220, 1.0) - 1.5) * 2, 0, 1) * _blobs(
            x, y, ((0.028, 0.15, 0.022), (0, 0.155, 0.015))
        )
        skin *= 1 - looks.freckles * spots[..., None] * np.array([0.3, 0.5, 0.6], np.float32)
    if looks.stubble:
        beard = np.clip((0.128 - y) / 0.02, 0, 1) + 0.9 * np.exp(-((x / 0.024) ** 2 + ((y - 0.133) / 0.005) ** 2))
        grain = 0.75 + np.clip(_noise(rng, 500, 0.5), -0.6, 0.6)
        shade = (looks.stubble * np.clip(beard, 0, 1) * grain).clip(0, 1)[..., None]
        skin = skin * (1 - shade) + linear(looks.hair) * 1.4 * shade
    brows = _brows(rng, looks, x, y, eyes)[..., None]
    skin = skin * (1 - brows) + linear(looks.hair) * 0.35 * brows
    rough = 1 + 0.9 * rng.normal(0, 0.22, (2048, 1)) + _noise(rng, 64, 0.22, (48, 2048))
    strands = cv2.GaussianBlur(rough.astype(np.float32), (0, 0), sigmaX=3, sigmaY=1.0)
    return Paint(
        np.clip(skin, 0.002, 0.95).astype(np.float32),
        np.clip(strands, 0.35, 1.8).astype(np.float32),
        linear(looks.hair), linear(looks.lips), linear(looks.iris), linear(looks.cloth),
    )  # fmt: skip


def _blobs(x: F32, y: F32, places: tuple[tuple[float, float, float], ...]) -> F32:
    total = np.zeros_like(x)
    for px, py, radius in places:
        total += np.exp(-(((np.abs(x) - px) / radius) ** 2 + ((y - py) / radius) ** 2))
    return np.clip(total, 0, 1)


def _brows(rng: np.random.Generator, looks: Looks, x: F32, y: F32, eyes: F32) -> F32:
    """Two brows drawn as many short strokes; coverage 0..1."""
    canvas = np.zeros((_SIZE, _SIZE), np.float32)
    middle, height = float(np.abs(eyes[:, 0]).mean()), float(eyes[:, 1].mean())
    per_m = _SIZE / MAP_WIDTH_M, _SIZE / MAP_HEIGHT_M
    for side in (-1, 1):
        for _ in range(330):
            t = rng.random()  # 0 at the nose, 1 at the temple
            along = middle - 0.019 + 0.042 * t
            thick = looks.brow_thickness_m * (1.0 - 0.65 * t**2) * (0.5 + 0.5 * min(1, t / 0.12))
            up = height + 0.0200 + 0.0055 * np.sin(np.pi * min(1, t / 1.3)) - 0.004 * t**2 + rng.uniform(-1, 1) * thick
            lean = np.radians(rng.normal(62 - 58 * t, 9))
            length = rng.uniform(0.002, 0.0042)
            start = np.array([side * along + 0.5 * MAP_WIDTH_M, up]) * per_m
            end = start + np.array([side * np.cos(lean), np.sin(lean)]) * length * per_m
            points = [(int(px * 16), int((_SIZE - py) * 16)) for px, py in (start, end)]
            cv2.line(canvas, points[0], points[1], 1.0, 2, cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 1.6) * looks.brow_strength, np.float32)
