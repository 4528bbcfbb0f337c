"""Light that is worked out once for a head: how open each vertex is to the sky, and to each lamp."""

from __future__ import annotations

import numpy as np

from lipsync.core import F32, I32, Bool
from lipsync.demo.raster import normals, rasterise

_RESOLUTION = 320
_BIAS_M = 0.004


def visibility(vertices: F32, triangles: I32, two_sided: Bool, direction: F32) -> F32:
    """For each vertex, 1 where nothing stands between it and a far lamp in this direction, else 0; (V,) float32."""
    forward = direction / np.linalg.norm(direction)
    side = np.cross([0.0, 1.0, 0.1], forward)
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(forward, side), forward]).astype(np.float32)
    seen_from = vertices @ frame.T
    low, high = seen_from[:, :2].min(0), seen_from[:, :2].max(0)
    scale = (_RESOLUTION - 4) / float((high - low).max())
    points = seen_from.copy()
    points[:, 0] = (seen_from[:, 0] - low[0]) * scale + 2
    points[:, 1] = (high[1] - seen_from[:, 1]) * scale + 2
    _, _, depth = rasterise(points, triangles, two_sided, (_RESOLUTION, _RESOLUTION))
    columns = points[:, 0].astype(int).clip(0, _RESOLUTION - 1)
    rows = points[:, 1].astype(int).clip(0, _RESOLUTION - 1)
    return np.asarray(depth[rows, columns] < seen_from[:, 2] + _BIAS_M, np.float32)


def sphere(count: int) -> F32:
    """Directions spread evenly over the sphere, (count, 3)."""
    k = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    return np.stack([np.cos(azimuth) * np.sin(polar), np.cos(polar), np.sin(azimuth) * np.sin(polar)], 1).astype(
        np.float32
    )


def sky_openness(vertices: F32, triangles: I32, two_sided: Bool, *, count: int = 120) -> F32:
    """How much of the sky each vertex sees, 0..1, facing directions weighing more; (V,) float32."""
    facing = normals(vertices, triangles)
    total, seen = np.zeros(len(vertices), np.float32), np.zeros(len(vertices), np.float32)
    for direction in sphere(count):
        weight = np.maximum(0, facing @ direction)
        total += weight
        seen += weight * visibility(vertices, triangles, two_sided, direction)
    return np.asarray(seen / np.maximum(total, 1e-6), np.float32)


def lamp_openness(vertices: F32, triangles: I32, two_sided: Bool, direction: F32, *, spread: float = 0.22) -> F32:
    """How much of a broad lamp each vertex sees, 0..1: soft shadows; (V,) float32."""
    around = direction / np.linalg.norm(direction) + spread * sphere(24)
    return np.asarray(np.mean([visibility(vertices, triangles, two_sided, d) for d in around], axis=0), np.float32)
