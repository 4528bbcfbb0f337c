"""One rendered person: a shape with its action offsets, and the colours of skin, lips, hair, eyes and clothes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lipsync.core import F32, F64
from lipsync.demo.actions import ACTIONS
from lipsync.demo.mesh import SKIN, HeadMesh, head_mesh, shown_shape, unit_action

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Looks:
    """What a person looks like; colours are sRGB 0..1, lengths metres, ``phenotype`` is anny's."""

    phenotype: tuple[tuple[str, float], ...]
    skin: Colour
    lips: Colour
    hair: Colour
    iris: Colour
    cloth: Colour
    hairline_m: float = 0.228
    hair_depth_m: float = 0.014
    temple_m: float = 0.030
    """How far forward the hair comes at the temples."""
    sideburn_m: float = 0.145
    """How low the hair comes before the ears."""
    brow_thickness_m: float = 0.0034
    brow_strength: float = 0.8
    freckles: float = 0.0
    stubble: float = 0.0
    seed: int = 0


def _align(moved: F64, still: F64, anchor: npt.NDArray[np.bool_]) -> F64:
    """The moved vertices turned and shifted so that the anchor vertices lie on the still ones."""
    a, b = moved[anchor].mean(0), still[anchor].mean(0)
    u, _, vt = np.linalg.svd((moved[anchor] - a).T @ (still[anchor] - b))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    aligned: F64 = (moved - a) @ (u @ flip @ vt) + b
    return aligned


class Person:
    """Vertices for any action weights, and the per-vertex facts that the shader wants."""

    def __init__(self, looks: Looks) -> None:
        self.looks = looks
        self.mesh: HeadMesh = head_mesh()
        phenotype = dict(looks.phenotype)
        rest = shown_shape(phenotype)
        offsets = []
        for name in ACTIONS:
            moved = shown_shape(phenotype, unit_action(name))
            offsets.append(self._local(_align(moved, rest, self.mesh.skull) - rest, name))
        rest[self.mesh.parts["helper-upper-teeth"]] += (0, -0.0018, -0.003)
        self.rest: F32 = rest.astype(np.float32)
        self.offsets: F32 = np.stack(offsets).astype(np.float32)
        self._hair_volume()

    def _local(self, offset: F64, action: str) -> F64:
        """Offsets that stay in the face: neck and ears keep still; tongue and lower teeth go with the jaw alone."""
        canonical = self.mesh.canonical
        fade = np.clip((canonical[:, 1] - 0.0) / 0.05, 0, 1) * np.clip((canonical[:, 2] + 0.01) / 0.04, 0, 1)
        upper = self.mesh.parts["helper-upper-teeth"]
        out: F64 = offset * fade[:, None]
        if action != "jawOpen":
            for part in ("helper-upper-teeth", "helper-lower-teeth", "helper-tongue"):
                out[self.mesh.parts[part]] = 0
        out[upper] = 0
        return out

    def _hair_volume(self) -> None:
        self.hair = hair_distance(self.mesh, self.looks)
        away = self.rest - np.array([0, 0.14, 0.0], np.float32)
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        depth = self.looks.hair_depth_m * np.clip(self.hair / 0.02, 0, 1) ** 0.7
        self.rest = (self.rest + away * depth[:, None]).astype(np.float32)

    def pose(self, actions: F32) -> F32:
        """Vertices (V, 3) in metres with these action weights (len(ACTIONS),)."""
        vertices: F32 = self.rest + np.tensordot(actions.astype(np.float32), self.offsets, 1)
        return vertices


def hair_distance(mesh: HeadMesh, looks: Looks) -> F32:
    """How far inside the hair each vertex is, metres, below 0 outside it; (V,) float32."""
    x, y, z = mesh.canonical.T
    front = y - (looks.hairline_m - 2.2 * x**2)
    side = np.minimum(looks.temple_m - 0.35 * (0.2 - y) - z, y - looks.sideburn_m)
    back = np.minimum(-0.035 - z, y - 0.075)
    distance = np.maximum(np.maximum(front, side), back)
    distance = np.where(mesh.ear > 0.3, -0.02, distance)
    return np.where(mesh.material == SKIN, distance, -1).astype(np.float32)
