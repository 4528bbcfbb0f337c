"""What each material looks like before light falls on it; one function a material, compiled for the shader's loop.

``surface`` is the record that they fill: colour, gloss, how light spreads, how much of sky and lamps arrives.
"""

from __future__ import annotations

import numba
import numpy as np

from lipsync.core import F32
from lipsync.demo.mesh import EYE, LASH, SKIN, TEETH, TONGUE

CX, CY, CZ, LIP, INNER, HAIR, COLLAR, SKY, KEY, FILL = range(10)
"""The columns of the per-vertex attributes: canonical place, then what is there, then baked light."""

RED, GREEN, BLUE, SHINE, SHARP, WRAP, SKY_IN, KEY_IN, FILL_IN, MOUTH, HAIRY, STRAND, BULGE, DEEP = range(14)
FIELDS = 14
"""The fields of a surface."""

HAIR_COLOR, LIP_COLOR, IRIS_COLOR, CLOTH_COLOR = range(4)
"""The rows of the palette."""


@numba.njit(cache=True, fastmath=True)
def look_up(
    surface: F32, kind: int, value: F32, front: F32, strands: F32, palette: F32, eyes: F32
) -> None:  # fmt: skip
    """Fill ``surface`` for a point of this material with these interpolated attributes."""
    surface[:] = 0
    surface[SHARP] = 20
    surface[SKY_IN], surface[KEY_IN], surface[FILL_IN] = value[SKY], value[KEY], value[FILL]
    surface[BULGE] = 1
    if kind == SKIN:
        skin(surface, value, front, palette)
        hair(surface, value, strands, palette)
        cloth(surface, value, palette)
    elif kind == TONGUE:
        tongue(surface, value)
    elif kind == TEETH:
        teeth(surface, value)
    elif kind == EYE:
        eye(surface, value, palette, eyes)
    elif kind == LASH:
        surface[RED], surface[GREEN], surface[BLUE] = 0.02, 0.015, 0.012


@numba.njit(cache=True, fastmath=True)
def skin(surface: F32, value: F32, front: F32, palette: F32) -> None:
    """Face and body: the frontal map, lips, the dark inside of the mouth."""
    size = front.shape[0]
    column = min(max((value[CX] / 0.2 + 0.5) * size - 0.5, 0.0), size - 1.001)
    row = min(max((1 - value[CY] / 0.28) * size - 0.5, 0.0), size - 1.001)
    iu, iv = int(column), int(row)
    fu, fv = column - iu, row - iv
    lip, inner = min(1.0, max(0.0, value[LIP])), min(1.0, max(0.0, value[INNER]))
    for k in range(3):
        upper = front[iv, iu, k] * (1 - fu) + front[iv, iu + 1, k] * fu
        lower = front[iv + 1, iu, k] * (1 - fu) + front[iv + 1, iu + 1, k] * fu
        base = (upper * (1 - fv) + lower * fv) * (1 - lip) + palette[LIP_COLOR, k] * lip
        surface[RED + k] = base * (1 - 0.90 * inner)
    surface[SHINE] = (0.07 + 0.10 * lip) * (1 - inner)
    surface[SHARP] = 14 + 20 * lip
    surface[WRAP], surface[DEEP] = 0.28, 0.15
    surface[MOUTH] = max(lip, inner)
    fade = inner * (1 - min(1.0, max(0.0, (value[CZ] - 0.07) / 0.05)))
    surface[KEY_IN] *= 1 - fade
    surface[FILL_IN] *= 1 - fade
    surface[SKY_IN] *= 1 - 0.6 * fade


@numba.njit(cache=True, fastmath=True)
def hair(surface: F32, value: F32, strands: F32, palette: F32) -> None:
    """Strands that run away from the crown, ending unevenly at the hairline."""
    if value[HAIR] <= -0.012:
        return
    x, z = value[CX], value[CZ]
    around = np.arctan2(x, -(z + 0.02)) / (2 * np.pi) + 0.5
    far = np.sqrt(x * x + (z + 0.02) ** 2) / 0.12
    angles, distances = strands.shape
    strand = strands[int(around * (angles - 1)) % angles, min(int(far * (distances - 1)), distances - 1)]
    hairy = min(1.0, max(0.0, (value[HAIR] + 0.006 * (strand - 1) + 0.001) / 0.006))
    for k in range(3):
        surface[RED + k] = surface[RED + k] * (1 - hairy) + palette[HAIR_COLOR, k] * strand * strand * hairy
    surface[SHINE] *= 1 - hairy
    surface[WRAP] *= 1 - hairy
    surface[HAIRY], surface[STRAND] = hairy, strand


@numba.njit(cache=True, fastmath=True)
def cloth(surface: F32, value: F32, palette: F32) -> None:
    """A plain shirt below the collar."""
    covered = min(1.0, max(0.0, value[COLLAR] / 0.0015))
    if covered <= 0:
        return
    weave = 1 + 0.06 * np.sin(value[CX] * 3000) * np.sin(value[CY] * 3000)
    for k in range(3):
        surface[RED + k] = surface[RED + k] * (1 - covered) + palette[CLOTH_COLOR, k] * weave * covered
    surface[SHINE] *= 1 - covered


@numba.njit(cache=True, fastmath=True)
def tongue(surface: F32, value: F32) -> None:
    """Darker the farther back."""
    near = min(1.0, max(0.1, (value[CZ] - 0.06) / 0.05))
    surface[RED], surface[GREEN], surface[BLUE] = 0.42 * near, 0.13 * near, 0.12 * near
    surface[KEY_IN], surface[FILL_IN], surface[SKY_IN] = 0.35, 0.3, 0.45
    surface[SHINE], surface[MOUTH] = 0.05, 1


@numba.njit(cache=True, fastmath=True)
def teeth(surface: F32, value: F32) -> None:
    """Ivory with gaps, in the lips' shade."""
    front = min(1.0, max(0.0, (value[CZ] - 0.07) / 0.032))
    gap = 0.82 + 0.18 * min(1.0, abs(np.sin(value[CX] * np.pi / 0.0078)) * 4)
    light = gap * (0.25 + 0.75 * front)
    surface[RED], surface[GREEN], surface[BLUE] = 0.80 * light, 0.74 * light, 0.62 * light
    surface[KEY_IN], surface[FILL_IN], surface[SKY_IN] = 0.42 * front, 0.4 * front, 0.5
    surface[SHINE], surface[MOUTH] = 0.06, 1


@numba.njit(cache=True, fastmath=True)
def eye(surface: F32, value: F32, palette: F32, eyes: F32) -> None:
    """White, iris with spokes and a dark rim, pupil; wet, and bulging so that a lamp shows in it."""
    x, y = value[CX], value[CY]
    left = (x - eyes[0, 0]) ** 2 + (y - eyes[0, 1]) ** 2
    right = (x - eyes[1, 0]) ** 2 + (y - eyes[1, 1]) ** 2
    from_pole = np.sqrt(min(left, right))
    ray = np.arctan2(y - eyes[0, 1], x - (eyes[0, 0] if left < right else eyes[1, 0]))
    spokes = 1 + 0.25 * np.sin(ray * 23 + np.sin(ray * 7) * 3)
    iris = 0.0060
    white = min(1.0, max(0.0, (from_pole - iris + 0.0004) / 0.0006))
    rim = 1 - 0.75 * min(1.0, max(0.0, (from_pole - iris * 0.75) / (iris * 0.3)))
    pupil = min(1.0, max(0.0, (from_pole - 0.0022) / 0.0004))
    for k in range(3):
        inside = palette[IRIS_COLOR, k] * spokes * rim * pupil + 0.004
        surface[RED + k] = inside * (1 - white) + (0.62, 0.56, 0.53)[k] * white
    surface[SHINE], surface[SHARP], surface[KEY_IN], surface[FILL_IN], surface[BULGE] = 3.0, 90, 1, 0.3, 1.9
