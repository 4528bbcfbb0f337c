"""What the package itself carries: a face, a voice, and the generator to show them with."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from lipsync.weights import default_checkpoint

if TYPE_CHECKING:
    from lipsync.model.wav2lip import Wav2Lip

STAND_IN_SEED = 0


DEMO_HEAD = (440, 130, 840, 530)
"""Where the head is in ``demo_face``: x1 y1 x2 y2."""


def demo_face() -> bytes:
    """A rendered head, 1280 × 720 JPEG."""
    return (files("lipsync") / "assets" / "face.jpg").read_bytes()


def demo_voice() -> bytes:
    """A synthesised sentence, WAV."""
    return (files("lipsync") / "assets" / "voice.wav").read_bytes()


def demo_generator() -> Wav2Lip | None:
    """None where a trained generator is packaged; else a seeded stand-in, which draws noise in time with the voice."""
    if default_checkpoint() is not None:
        return None
    from lipsync.model.seeded import seeded_generator

    return seeded_generator(STAND_IN_SEED)
