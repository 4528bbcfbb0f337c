"""Readers of mouths, fitted on what the renderer draws."""

from __future__ import annotations

import numpy as np

from lipsync.demo.actions import ACTIONS
from lipsync.demo.corpus import Corpus
from lipsync.demo.frames import ViewPainter, draw_actions
from lipsync.demo.reading import READ, Reader, fit


def fit_view(painter: ViewPainter, corpus: Corpus, rng: np.random.Generator, *, count: int = 140) -> Reader:
    """A reader for this painter's view, from ``count`` random mouths."""
    actions = draw_actions(rng, corpus, count)
    crops = np.stack([painter.paint(row)[0] for row in actions])
    return fit(crops, actions[:, [ACTIONS.index(name) for name in READ]])
