"""What end-to-end tests compare with: a held-out sentence, its mouth over time, a reader for the default face."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from lipsync.demo.actions import ACTIONS
from lipsync.demo.cast import CAST
from lipsync.demo.corpus import Corpus, held_out_utterances
from lipsync.demo.frames import View, ViewPainter, portrait_of
from lipsync.demo.framing import Box
from lipsync.demo.reading import READ
from lipsync.demo.ruler import fit_view
from lipsync.demo.scene import Frame
from lipsync.demo.speech import RATE_HZ

SENTENCE = 9
BOX: Box = (505, 131, 775, 495)
"""Where YuNet sees the default face, with the ten pixels that the library adds below."""


def write_truth(folder: Path, corpus: Corpus) -> None:
    """``spoken.wav`` (16 kHz, 16-bit, mono) and ``spoken.npz``: actions at 80 Hz, the box, the reader's arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    said = held_out_utterances()[SENTENCE]
    with wave.open(str(folder / "spoken.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((said.samples * 32767).astype("<i2").tobytes())
    painter = ViewPainter(portrait_of(CAST[0]), View(0, CAST[0].pose, BOX), Frame())
    reader = fit_view(painter, corpus, np.random.default_rng(5), count=240)
    np.savez_compressed(
        folder / "spoken.npz",
        actions=said.track[:, [ACTIONS.index(name) for name in READ]].astype(np.float16),
        box=np.array(BOX),
        middle=reader.middle.astype(np.float16),
        weight=reader.weight.astype(np.float32),
        base=reader.base,
    )
