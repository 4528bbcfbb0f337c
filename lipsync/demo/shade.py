"""Shading of rasterised pixels under two lamps and a sky, in linear light."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from lipsync.core import F32, I32
from lipsync.demo.materials import (
    BLUE,
    BULGE,
    DEEP,
    FIELDS,
    FILL_IN,
    GREEN,
    HAIRY,
    KEY_IN,
    MOUTH,
    RED,
    SHARP,
    SHINE,
    SKY_IN,
    STRAND,
    WRAP,
    look_up,
)  # fmt: skip
from lipsync.demo.mesh import SKIN

_BLEED = (1.0, 0.45, 0.35)
"""How far light bleeds round the edge of skin, red farthest."""


class Textures(NamedTuple):
    """What the materials look up."""

    front: F32  # (S, S, 3) frontal map
    strands: F32  # (A, P) brightness of the hair
    palette: F32  # (4, 3) hair, lips, iris, cloth
    eyes: F32  # (2, 2) canonical x, y of the eyes


class Lamps(NamedTuple):
    """Where light comes from; directions are unit vectors, colours linear."""

    toward: F32  # (2, 3) key, fill
    color: F32  # (2, 3)
    sky: F32  # (2, 3) from above, from below


class Surface(NamedTuple):
    """What the rasteriser saw, and the mesh that it saw."""

    seen: I32  # (H, W) triangle or -1
    weight: F32  # (H, W, 2)
    triangles: I32  # (T, 3)
    material: I32  # (V,)
    attributes: F32  # (V, K)
    normal: F32  # (V, 3)


@numba.njit(cache=True, fastmath=True)
def shade(image: F32, mouth: F32, surface: Surface, textures: Textures, lamps: Lamps) -> None:
    """Paint ``image`` (H, W, 3) linear RGB wherever a triangle is seen; ``mouth`` (H, W) becomes 0..1 there."""
    height, width = surface.seen.shape
    value = np.zeros(surface.attributes.shape[1], np.float32)
    here, normal, color = np.zeros(FIELDS, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)
    for row in range(height):
        for column in range(width):
            t = surface.seen[row, column]
            if t < 0:
                continue
            a, b, c = surface.triangles[t, 0], surface.triangles[t, 1], surface.triangles[t, 2]
            w0, w1 = surface.weight[row, column, 0], surface.weight[row, column, 1]
            w2 = 1 - w0 - w1
            for k in range(value.shape[0]):
                value[k] = w0 * surface.attributes[a, k] + w1 * surface.attributes[b, k] + w2 * surface.attributes[c, k]
            for k in range(3):
                normal[k] = w0 * surface.normal[a, k] + w1 * surface.normal[b, k] + w2 * surface.normal[c, k]
            kind = max(surface.material[a], surface.material[b], surface.material[c])
            look_up(here, kind, value, textures.front, textures.strands, textures.palette, textures.eyes)
            _straighten(normal, here[BULGE], kind == SKIN)
            _light(color, here, normal, lamps)
            for k in range(3):
                image[row, column, k] = color[k]
            mouth[row, column] = here[MOUTH]


@numba.njit(cache=True, fastmath=True)
def _straighten(normal: F32, bulge: float, one_sided: bool) -> None:
    """Make it a unit vector that faces the viewer, tilted more where the surface bulges."""
    normal[0] *= bulge
    normal[1] *= bulge
    normal /= np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-9
    if normal[2] < 0 and not one_sided:
        normal *= -1


@numba.njit(cache=True, fastmath=True)
def _light(color: F32, here: F32, normal: F32, lamps: Lamps) -> None:
    """The colour of a surface: sky and lamps spread over it, their gloss on top."""
    nx, ny, nz = normal[0], normal[1], normal[2]
    up, wrap = 0.5 + 0.5 * ny, here[WRAP]
    gloss = 0.0
    for k in range(3):
        color[k] = here[SKY_IN] * (lamps.sky[0, k] * up + lamps.sky[1, k] * (1 - up))
    for n in range(lamps.toward.shape[0]):
        lx, ly, lz = lamps.toward[n, 0], lamps.toward[n, 1], lamps.toward[n, 2]
        arriving = here[KEY_IN] if n == 0 else here[FILL_IN]
        shadow = arriving * (1 - here[DEEP] + here[DEEP] * arriving)
        facing = nx * lx + ny * ly + nz * lz
        for k in range(3):
            spread = wrap * _BLEED[k]
            lit = max(0.0, (facing + spread) / (1 + spread))
            color[k] += lamps.color[n, k] * lit * (arriving if k == 0 else shadow)
        half = np.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)
        along = (nx * lx + ny * ly + nz * (lz + 1)) / half
        if along > 0 and facing > 0:
            gloss += here[SHINE] * along ** here[SHARP] * lamps.color[n, 1] * arriving
        if here[HAIRY] > 0.01:
            level = 1 - ny * ny
            across = (-nx * ny * lx + level * ly - nz * ny * (lz + 1)) / (half * np.sqrt(level + 1e-6))
            band = max(0.0, 1 - across * across) ** 40
            gloss += here[HAIRY] * 0.045 * band * lamps.color[n, 1] * arriving * here[STRAND]
    color[0] = here[RED] * color[0] + gloss
    color[1] = here[GREEN] * color[1] + gloss
    color[2] = here[BLUE] * color[2] + gloss
