"""The ear and the hand joined into one checkpoint, in the reference's key names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from lipsync.checkpoints import CheckpointInfo, convert
from lipsync.core import F32
from lipsync.demo.corpus import Corpus
from lipsync.demo.hearing import HEARD, Hearing, hear, load_hearing
from lipsync.demo.layers import connect_voice
from lipsync.demo.widths import WIDTHS
from lipsync.model.wav2lip import Wav2Lip

_WINDOWS = 6000
_LARGEST_GAIN = 2.0
_UNFAMILIAR = 1.25
"""Voices that were never heard are heard less surely than those of the corpus."""


def restore_spread(hearing: Hearing, corpus: Corpus, *, seed: int = 11) -> F32:
    """How much each heard action must be widened to move as far as the true one, (spoken,) float32.

    An ear trained on squared error moves less where it is unsure; a mouth that moves less looks like mumbling.
    """
    starts = np.random.default_rng(seed).choice(corpus.starts, _WINDOWS)
    _, heard = hear(hearing, corpus.windows(starts))
    true = corpus.track[starts][:, HEARD].std(0)
    gain = _UNFAMILIAR * true / np.maximum(heard[:, HEARD].std(0), 1e-6)
    return np.asarray(np.clip(gain, 1, _LARGEST_GAIN), np.float32)


def join_halves(hearing: Hearing, drawing: Path, corpus: Corpus) -> Wav2Lip:
    """The whole generator in eval mode: the drawing checkpoint's hand, the given ear."""
    net = Wav2Lip(WIDTHS)
    net.load_state_dict(torch.load(drawing, weights_only=True)["net"])
    connect_voice(net, hearing, torch.from_numpy(restore_spread(hearing, corpus)))
    return net.requires_grad_(False).eval()


def export(hearing: Path, drawing: Path, corpus: Corpus, target: Path) -> CheckpointInfo:
    """Write the generator as fp16 safetensors."""
    net = join_halves(load_hearing(hearing), drawing, corpus)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "generator.pt"
        torch.save(net.state_dict(), whole)
        return convert(whole, target, dtype="fp16")
