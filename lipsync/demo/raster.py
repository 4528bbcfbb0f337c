"""A small triangle rasteriser: which triangle each pixel sees, where in it, and how far away; also the normals."""

from __future__ import annotations

import numba
import numpy as np

from lipsync.core import F32, I32, Bool

FAR = np.float32(-1e9)


@numba.njit(cache=True, fastmath=True)
def normals(vertices: F32, triangles: I32) -> F32:
    """Unit vertex normals (V, 3), each triangle weighing as much as its area."""
    total = np.zeros_like(vertices)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            total[k, 0] += x
            total[k, 1] += y
            total[k, 2] += z
    for i in range(total.shape[0]):
        length = np.sqrt(total[i, 0] ** 2 + total[i, 1] ** 2 + total[i, 2] ** 2) + 1e-12
        total[i] /= length
    return total


@numba.njit(cache=True, fastmath=True)
def rasterise(points: F32, triangles: I32, two_sided: Bool, size: tuple[int, int]) -> tuple[I32, F32, F32]:
    """What every pixel sees: triangle (H, W), -1 for none; its first two barycentric weights (H, W, 2); depth (H, W).

    ``points`` (V, 3): x and y in pixels, y down, z growing towards the viewer. Triangles that turn their back are left
    out unless ``two_sided`` (T,) says otherwise.
    """
    height, width = size
    seen = np.full((height, width), -1, np.int32)
    weight = np.zeros((height, width, 2), np.float32)
    depth = np.full((height, width), FAR, np.float32)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, y0, x1, y1, x2, y2 = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        left, right = max(0, int(np.ceil(min(x0, x1, x2) - 0.5))), min(width - 1, int(np.floor(max(x0, x1, x2) - 0.5)))
        top = max(0, int(np.ceil(min(y0, y1, y2) - 0.5)))
        bottom = min(height - 1, int(np.floor(max(y0, y1, y2) - 0.5)))
        if left > right or top > bottom:
            continue
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9 or (area > 0 and not two_sided[t]):
            continue
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                w1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) / area
                w2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) / area
                w0 = 1 - w1 - w2
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                z = w0 * points[a, 2] + w1 * points[b, 2] + w2 * points[c, 2]
                if z > depth[y, x]:
                    depth[y, x] = z
                    seen[y, x] = t
                    weight[y, x, 0], weight[y, x, 1] = w0, w1
    return seen, weight, depth
