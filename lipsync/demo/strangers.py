"""People whom no training picture shows, drawn at random: for measuring how far the generator reaches."""

from __future__ import annotations

import numpy as np

from lipsync.demo.cast import Role
from lipsync.demo.person import Colour, Looks
from lipsync.demo.scene import Light, Pose

_LIGHT_SKIN, _DARK_SKIN = np.array([0.90, 0.74, 0.64]), np.array([0.42, 0.29, 0.23])
_HAIR: tuple[Colour, ...] = ((0.08, 0.06, 0.05), (0.22, 0.13, 0.08), (0.48, 0.34, 0.18), (0.55, 0.52, 0.48))


def stranger(seed: int) -> Role:
    """One random person with a random light, pose and background."""
    rng = np.random.default_rng([2024, seed])
    african, asian, caucasian = rng.dirichlet([0.7, 0.7, 0.7])
    phenotype = {
        "gender": rng.random(), "age": rng.uniform(0.5, 0.9), "muscle": rng.uniform(0.3, 0.8),
        "weight": rng.uniform(0.25, 0.8), "proportions": rng.uniform(0.5, 1.0),
        "african": african, "asian": asian, "caucasian": caucasian,
    }  # fmt: skip
    dark = float(np.clip(0.1 + 0.8 * african + 0.1 * rng.normal(), 0, 1))
    skin = _LIGHT_SKIN * (1 - dark) + _DARK_SKIN * dark
    looks = Looks(
        phenotype=tuple((key, float(value)) for key, value in phenotype.items()),
        skin=_colour(skin), lips=_colour(skin * [0.86, 0.60, 0.63]), hair=_HAIR[rng.integers(len(_HAIR))],
        iris=_colour(rng.uniform(0.12, 0.45, 3)), cloth=_colour(rng.uniform(0.2, 0.7, 3)),
        hairline_m=float(rng.uniform(0.226, 0.243)), hair_depth_m=float(rng.uniform(0.006, 0.02)),
        temple_m=float(rng.uniform(0.012, 0.03)), seed=1000 + seed,
    )  # fmt: skip
    side = float(rng.choice([-1, 1]))
    light = Light(key=(side * float(rng.uniform(0.2, 0.7)), 0.55, 0.8), fill=(-side * 0.9, 0.15, 0.6))
    pose = Pose(float(rng.normal(0, 0.1)), float(0.16 + rng.normal(0, 0.03)), float(rng.normal(0, 0.02)))
    near = rng.uniform(0.4, 0.85, 3)
    return Role(f"stranger_{seed}", looks, pose, (_colour(near), _colour(near * 0.65)), light)


def _colour(values: object) -> Colour:
    red, green, blue = (float(v) for v in np.clip(np.asarray(values, float), 0.02, 0.98))
    return red, green, blue
