"""The embedded generator's widths: narrow where pictures are small, wide enough where they are full size."""

from __future__ import annotations

from lipsync.model.wav2lip import Widths

WIDTHS = Widths(
    face=(16, 32, 32, 32, 64, 128, 128),
    voice=(16, 32, 96, 192, 384),
    decoder=(256, 160, 160, 128, 64, 32, 32),
    output=24,
)
