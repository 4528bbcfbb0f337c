"""Who speaks: espeak-ng's own variants, and voices drawn at random, so that an unfamiliar voice is nothing new."""

from __future__ import annotations

import numpy as np

from lipsync.demo.espeak import synthesiser

VARIANTS = (
    "", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "Alex", "Annie", "Andy", "Alicia",
    "anika", "belinda", "caleb", "edward", "gustave", "iven", "john", "linda", "max", "michel", "steph", "quincy",
    "rob", "klatt", "klatt2", "grandma", "paul", "Andrea", "antonio", "aunty", "benjamin", "boris", "david", "Denis",
    "Diogo", "ed", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "marcelo", "Marco", "Mario", "Michael", "miguel",
    "Mike", "Nguyen", "pablo", "pedro", "robert", "sandro", "victor", "zac", "klatt3", "klatt4",
)  # fmt: skip
"""Those that training hears; the empty one is the plain voice."""
HELD_OUT_VARIANTS = ("f5", "adam", "shelby", "travis")
"""Voices that nothing but the measures hears."""
TUNING_VARIANTS = (
    "AnxiousAndy", "Demonic", "Gene2", "RicishayMax", "RicishayMax2", "RicishayMax3", "Storm", "Tweaky",
    "UniRobot", "anikaRobot", "announcer", "croak", "edward2", "fast", "grandpa", "iven2", "iven3", "iven4",
    "kaukovalta", "klatt5", "klatt6", "norbert", "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5",
    "robosoft6", "robosoft7", "robosoft8", "steph2", "steph3", "whisper", "whisperf",
)  # fmt: skip
"""All others of espeak-ng 1.51 that can be named: only the export hears them, to decide how far to widen."""
FAMILIAR_VARIANTS = ("m3", "f2", "Annie", "klatt")
"""Some that training hears, for comparison."""
_DRAWN = "drawn"


def draw_variant(rng: np.random.Generator, accent: str, *, drawn_share: float) -> str:
    """The name of a variant that goes with this accent; a share of them is made up for the occasion."""
    if rng.random() < drawn_share:
        synthesiser().define(_DRAWN, draw_timbre(rng))
        return f"{accent}+{_DRAWN}"
    variant = VARIANTS[rng.integers(len(VARIANTS))]
    return f"{accent}+{variant}" if variant and synthesiser().has(f"{accent}+{variant}") else accent


def draw_timbre(rng: np.random.Generator) -> list[str]:
    """A random throat as lines of a voice file: its length, each formant's place, height and width, its breath."""
    throat = np.exp(rng.uniform(np.log(0.86), np.log(1.25)))
    lines = [f"formant 0 100 {rng.uniform(60, 170):.0f} {rng.uniform(80, 180):.0f}"]
    for formant in range(1, 9):
        scatter = 0.07 if formant == 1 else 0.12
        place = 100 * throat * np.exp(rng.normal(0, scatter))
        if formant >= 3 and rng.random() < 0.15:
            place *= rng.uniform(0.5, 1.2)
        height = 100 * np.exp(rng.normal(0, 0.35)) if formant < 6 else rng.uniform(10, 130)
        width = 100 * np.exp(rng.normal(0, 0.3))
        lines.append(f"formant {formant} {place:.0f} {height:.0f} {width:.0f}")
    low, middle, high = sorted(rng.uniform(100, 3500, 3))
    if rng.random() < 0.5:
        levels = rng.integers(20, 256, 3)
        lines.append(f"tone {low:.0f} {levels[0]} {middle:.0f} {levels[1]} {high:.0f} {levels[2]}")
    lines.append(f"voicing {rng.uniform(30, 200):.0f}")
    lines.append(f"consonants {rng.uniform(60, 180):.0f} {rng.uniform(60, 190):.0f}")
    lines.append(f"flutter {rng.integers(0, 21)}")
    lines.append(f"roughness {rng.integers(0, 4)}")
    if rng.random() < 0.25:
        lines.append(f"klatt {rng.integers(1, 7)}")
    if rng.random() < 0.25:
        lines.append("breath " + " ".join(str(rng.integers(0, 40)) for _ in range(8)))
    return lines
