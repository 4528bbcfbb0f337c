"""The people whom the package ships: their looks, their light, how they stand in their picture."""

from __future__ import annotations

from dataclasses import dataclass

from lipsync.demo.person import Colour, Looks
from lipsync.demo.scene import Light, Pose


@dataclass(frozen=True)
class Role:
    """One member of the cast, as shown in a still."""

    name: str
    looks: Looks
    pose: Pose
    background: tuple[Colour, Colour]
    light: Light = Light()


_FROM_RIGHT = Light(
    key=(0.6, 0.5, 0.8), key_light=(1.15, 1.10, 1.0), fill=(-0.9, 0.2, 0.6), fill_light=(0.26, 0.28, 0.33)
)  # fmt: skip
_SOFT = Light(key=(-0.25, 0.6, 0.9), key_light=(0.98, 0.95, 0.92), fill=(0.8, 0.0, 0.7), fill_light=(0.32, 0.32, 0.34))

CAST = (
    Role(
        "face",
        Looks(
            phenotype=(
                ("gender", 0.05), ("age", 0.55), ("caucasian", 0.7), ("asian", 0.2), ("african", 0.1),
            ),
            skin=(0.87, 0.68, 0.58), lips=(0.72, 0.40, 0.38), hair=(0.27, 0.17, 0.11), iris=(0.36, 0.42, 0.32),
            cloth=(0.22, 0.35, 0.45), hairline_m=0.234, hair_depth_m=0.02, seed=1,
        ),
        Pose(yaw=0.05, pitch=0.16),
        ((0.80, 0.80, 0.77), (0.52, 0.56, 0.58)),
    ),
    Role(
        "face_two",
        Looks(
            phenotype=(
                ("gender", 0.95), ("age", 0.6), ("african", 0.85), ("caucasian", 0.1), ("asian", 0.05), ("muscle", 0.6),
            ),
            skin=(0.48, 0.33, 0.26), lips=(0.45, 0.27, 0.25), hair=(0.09, 0.07, 0.06), iris=(0.20, 0.13, 0.09),
            cloth=(0.72, 0.66, 0.52), hairline_m=0.232, hair_depth_m=0.006, temple_m=0.012, sideburn_m=0.160,
            brow_thickness_m=0.0042, seed=2,
        ),
        Pose(yaw=-0.10, pitch=0.15, roll=0.02),
        ((0.58, 0.66, 0.70), (0.30, 0.38, 0.44)), _FROM_RIGHT,
    ),
    Role(
        "face_three",
        Looks(
            phenotype=(
                ("gender", 0.9), ("age", 0.85), ("caucasian", 0.9), ("asian", 0.05), ("african", 0.05),
                ("weight", 0.65),
            ),
            skin=(0.84, 0.63, 0.54), lips=(0.68, 0.42, 0.39), hair=(0.58, 0.56, 0.54), iris=(0.30, 0.42, 0.52),
            cloth=(0.30, 0.22, 0.24), hairline_m=0.243, hair_depth_m=0.011, temple_m=0.016, sideburn_m=0.158,
            stubble=0.22, brow_thickness_m=0.0040, seed=3,
        ),
        Pose(yaw=0.12, pitch=0.17, roll=-0.015),
        ((0.74, 0.70, 0.62), (0.46, 0.42, 0.38)), _SOFT,
    ),
    Role(
        "face_four",
        Looks(
            phenotype=(
                ("gender", 0.1), ("age", 0.5), ("asian", 0.9), ("caucasian", 0.05), ("african", 0.05), ("weight", 0.4),
            ),
            skin=(0.88, 0.72, 0.60), lips=(0.76, 0.36, 0.38), hair=(0.14, 0.10, 0.09), iris=(0.24, 0.16, 0.11),
            cloth=(0.62, 0.28, 0.30), hairline_m=0.226, hair_depth_m=0.018, temple_m=0.022,
            brow_thickness_m=0.0028, seed=4,
        ),
        Pose(yaw=-0.04, pitch=0.15, roll=0.01),
        ((0.78, 0.76, 0.80), (0.50, 0.50, 0.58)),
    ),
)  # fmt: skip
"""The first stands in for everyone: it is the package's default face."""
