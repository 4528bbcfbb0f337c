"""A person in front of a camera: light, pose, projection, background; the portrait's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lipsync.core import F32, U8
from lipsync.demo import bake
from lipsync.demo.actions import ACTIONS
from lipsync.demo.mesh import LASH, SKIN
from lipsync.demo.paint import linear, paint
from lipsync.demo.person import Colour, Person
from lipsync.demo.raster import normals, rasterise
from lipsync.demo.shade import Lamps, Surface, Textures, shade

CAMERA_M = 1.15
"""How far the camera stands from the head's middle."""

SMILE = 0.22
"""A resting face smiles a little; speech is added to it."""
SHUT = -0.05
"""The model's own resting lips stand apart by a hair; this much jaw shuts them."""


@dataclass(frozen=True)
class Light:
    """Two lamps and a sky. Directions point at the lamps, x right, y up, z to the viewer; colours are linear."""

    key: Colour = (-0.55, 0.55, 0.8)
    key_light: Colour = (1.12, 1.07, 1.0)
    fill: Colour = (0.9, 0.15, 0.6)
    fill_light: Colour = (0.24, 0.26, 0.30)
    above: Colour = (0.36, 0.37, 0.39)
    below: Colour = (0.17, 0.15, 0.14)


@dataclass(frozen=True)
class Pose:
    """Where the head turns, radians, and where its middle stands in the picture, as fractions of its height."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    @property
    def rotation(self) -> F32:
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        cr, sr = np.cos(self.roll), np.sin(self.roll)
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        lean = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return np.asarray(lean @ nod @ turn, np.float32)


@dataclass(frozen=True)
class Frame:
    """The picture: its size in pixels and how many of its heights a metre at the head spans."""

    width: int = 1280
    height: int = 720
    per_m: float = 2.45


class Portrait:
    """Draws one person under one light before one background."""

    def __init__(self, person: Person, light: Light, background: tuple[Colour, Colour]) -> None:
        self.person, self.light, self.background = person, light, background
        mesh = person.mesh
        self.eyes = self._eye_poles()
        colors = paint(person.looks, self.eyes)
        palette = np.stack([colors.hair, colors.lips, colors.iris, colors.cloth])
        self.textures = Textures(colors.front, colors.strands, palette, self.eyes)
        kind = mesh.material[mesh.triangles].max(1)
        self.two_sided = kind != SKIN
        self.solid = np.ascontiguousarray(mesh.triangles[kind != LASH])
        self.lashes = np.ascontiguousarray(mesh.triangles[kind == LASH])
        self.solid_sides = self.two_sided[kind != LASH]
        toward = np.array([light.key, light.fill], np.float32)
        toward /= np.linalg.norm(toward, axis=1, keepdims=True)
        self.lamps = Lamps(
            toward, np.array([light.key_light, light.fill_light], np.float32),
            np.array([light.above, light.below], np.float32),
        )  # fmt: skip
        self.attributes = self._attributes()

    def _eye_poles(self) -> F32:
        mesh = self.person.mesh
        return np.array(
            [mesh.canonical[mesh.parts[p]][:, :2].mean(0) for p in ("helper-l-eye", "helper-r-eye")], np.float32
        )

    def _attributes(self) -> F32:
        mesh, rest = self.person.mesh, self.person.rest
        bake_kind = mesh.material[self.solid].max(1)
        walls = np.ascontiguousarray(self.solid[bake_kind == SKIN])
        sides = np.zeros(len(walls), np.bool_)
        sky = bake.sky_openness(rest, walls, sides)
        lamps = [bake.lamp_openness(rest, walls, sides, d) for d in self.lamps.toward]
        x, y, z = mesh.canonical.T
        collar = 0.040 - 0.45 * np.clip(z + 0.03, -0.1, 0.06) - y
        collar = np.where(mesh.material == SKIN, collar, -1)
        return np.stack(
            [x, y, z, mesh.lip, mesh.inner, self.person.hair, collar, sky, *lamps], 1
        ).astype(np.float32)  # fmt: skip

    def project(self, vertices: F32, pose: Pose, frame: Frame) -> tuple[F32, F32]:
        """Points (V, 3) in pixels of the frame with depth, and the turned vertices (V, 3) in metres."""
        turned = self._turn(vertices, pose) - np.array([0, 0.11, 0.0], np.float32)
        scale = frame.per_m * frame.height * CAMERA_M / (CAMERA_M - turned[:, 2])
        points = np.empty_like(turned)
        points[:, 0] = frame.width / 2 + frame.height * pose.shift_x + turned[:, 0] * scale
        points[:, 1] = frame.height * (0.5 + pose.shift_y) - turned[:, 1] * scale
        points[:, 2] = turned[:, 2]
        return points, turned

    def _turn(self, vertices: F32, pose: Pose) -> F32:
        """The head turned on its neck, the shoulders still, the eyes on the camera."""
        mesh, pivot = self.person.mesh, np.array([0, 0.06, -0.03], np.float32)
        with_head = np.clip((mesh.canonical[:, 1] + 0.01 + 0.3 * mesh.canonical[:, 2]) / 0.09, 0, 1).astype(np.float32)
        share = (with_head * with_head * (3 - 2 * with_head))[:, None]
        turned = (vertices - pivot) @ pose.rotation.T + pivot
        out = np.asarray(vertices * (1 - share) + turned * share, np.float32)
        for part in ("helper-l-eye", "helper-r-eye"):
            ball = mesh.parts[part]
            middle = vertices[ball].mean(0)
            out[ball] = (middle - pivot) @ pose.rotation.T + pivot + vertices[ball] - middle
        return out

    def draw(
        self, actions: F32, pose: Pose, frame: Frame, *, box: tuple[int, int, int, int] | None = None,
        oversample: int = 2,
    ) -> tuple[U8, F32]:  # fmt: skip
        """BGR pixels (h, w, 3) of the frame, or of x1, y1, x2, y2 in it, and how much mouth each is, (h, w) 0..1."""
        x1, y1, x2, y2 = box or (0, 0, frame.width, frame.height)
        width, height = (x2 - x1) * oversample, (y2 - y1) * oversample
        points, turned = self.project(self.person.pose(actions), pose, frame)
        points[:, 0] = (points[:, 0] - x1) * oversample
        points[:, 1] = (points[:, 1] - y1) * oversample
        facing = normals(turned, self.solid)
        seen, weight, depth = rasterise(points, self.solid, self.solid_sides, (height, width))
        image, mouth = self._backdrop(frame, (x1, y1, x2, y2), oversample), np.zeros((height, width), np.float32)
        surface = Surface(seen, weight, self.solid, self.person.mesh.material, self.attributes, facing)
        shade(image, mouth, surface, self.textures, self.lamps)
        lash, _, near = rasterise(points, self.lashes, np.ones(len(self.lashes), np.bool_), (height, width))
        image[(lash >= 0) & (near > depth)] *= 0.35
        if oversample > 1:
            shrink = (x2 - x1, y2 - y1)
            image = np.asarray(cv2.resize(image, shrink, interpolation=cv2.INTER_AREA), np.float32)
            mouth = np.asarray(cv2.resize(mouth, shrink, interpolation=cv2.INTER_AREA), np.float32)
        return _develop(image), mouth

    def _backdrop(self, frame: Frame, box: tuple[int, int, int, int], oversample: int) -> F32:
        x1, y1, x2, y2 = box
        near, far = (linear(c) for c in self.background)
        column = ((x1 + np.arange((x2 - x1) * oversample) / oversample) / frame.width - 0.5) * 1.2
        row = (y1 + np.arange((y2 - y1) * oversample) / oversample) / frame.height - 0.45
        distance = np.clip(np.sqrt(column[None] ** 2 + row[:, None] ** 2), 0, 1)[..., None]
        return np.ascontiguousarray(near * (1 - distance) + far * distance, dtype=np.float32)


def _develop(image: F32) -> U8:
    """Linear RGB to BGR uint8 with a soft shoulder."""
    soft = np.where(image > 0.7, 0.7 + 0.3 * np.tanh((image - 0.7) / 0.3), image)
    shown = np.clip(soft, 0, 1) ** (1 / 2.2)
    return (shown[..., ::-1] * 255 + 0.5).astype(np.uint8)


def resting(blink: float = 0.12) -> F32:
    """Action weights of a quiet face; ``blink`` 0 stares, 1 shuts the eyes."""
    weights = np.zeros(len(ACTIONS), np.float32)
    weights[ACTIONS.index("eyeBlink")] = blink
    weights[ACTIONS.index("mouthSmile")] = SMILE
    weights[ACTIONS.index("browInner")] = 0.3
    weights[ACTIONS.index("jawOpen")] = SHUT
    return weights


def still(portrait: Portrait, pose: Pose, frame: Frame) -> U8:
    """The portrait with a closed, resting mouth."""
    return portrait.draw(resting(), pose, frame)[0]
