"""What the package itself carries beside its generator: a face, and a voice with the words that it says."""

from __future__ import annotations

import json
from importlib.resources import files

DEMO_HEAD = (440, 130, 840, 530)
"""Where the head is in ``demo_face``: x1 y1 x2 y2."""


def demo_face() -> bytes:
    """A rendered head, 1280 × 720 JPEG."""
    return (files("lipsync") / "assets" / "face.jpg").read_bytes()


def demo_voice() -> bytes:
    """A synthesised sentence, WAV."""
    return (files("lipsync") / "assets" / "voice.wav").read_bytes()


def demo_words() -> list[tuple[float, str]]:
    """When each word of ``demo_voice`` begins, in seconds, and the word."""
    said = json.loads((files("lipsync") / "assets" / "voice_words.json").read_text())
    return [(word["start_s"], word["text"]) for word in said]
