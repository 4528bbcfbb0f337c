"""The ear and the hand joined into one checkpoint, in the reference's key names."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from lipsync.checkpoints import CheckpointInfo, convert
from lipsync.demo.actions import ACTIONS, SPOKEN
from lipsync.demo.cast import CAST
from lipsync.demo.corpus import Corpus, join, tuning_utterances
from lipsync.demo.evaluation import Sitter, generate, window_starts
from lipsync.demo.hearing import LARGEST_GAIN, Hearing, load_hearing, restore_spread
from lipsync.demo.layers import connect_voice
from lipsync.demo.speech import Utterance
from lipsync.demo.widths import WIDTHS
from lipsync.model.wav2lip import Wav2Lip

log = logging.getLogger(__name__)


def jaw_as_drawn(net: Wav2Lip, corpus: Corpus, said: list[Utterance]) -> float:
    """How far the drawn jaws of the cast move beside the true ones, in the middle one of the utterances, since one that
    whispers moves half as far again as it should: the hand shrinks too."""
    cast = [Sitter(role, k, corpus, seed=98) for k, role in enumerate(CAST)]
    jaw, moved = ACTIONS.index("jawOpen"), []
    for k, one in enumerate(said):
        sitter, starts = cast[k % len(cast)], window_starts(one.mel.shape[1])
        heard = join([one])
        read = sitter.reader.read(generate(net, sitter.painter.rest, heard.windows(starts)))[:, 0]
        moved.append(float(read.std() / heard.track[starts, jaw].std()))
    return float(np.median(moved))


def join_halves(hearing: Hearing, drawing: Path, corpus: Corpus) -> Wav2Lip:
    """The whole generator in eval mode: the drawing checkpoint's hand, the given ear."""
    said = tuning_utterances()
    net = Wav2Lip(WIDTHS)
    net.load_state_dict(torch.load(drawing, weights_only=True)["net"])
    net.requires_grad_(False).eval()
    gain = restore_spread(hearing, said)
    connect_voice(net, hearing, torch.from_numpy(gain))
    drawn = jaw_as_drawn(net, corpus, said)
    jaw = SPOKEN.index("jawOpen")
    gain[jaw] = np.clip(gain[jaw] / drawn, 1, LARGEST_GAIN)
    connect_voice(net, hearing, torch.from_numpy(gain))
    widened = dict(zip(SPOKEN, gain.round(3).tolist(), strict=True))
    log.info("the jaw was drawn with %.3f of its movement; what is heard is widened by %s", drawn, widened)
    return net


def export(hearing: Path, drawing: Path, corpus: Corpus, target: Path) -> CheckpointInfo:
    """Write the generator as fp16 safetensors."""
    net = join_halves(load_hearing(hearing), drawing, corpus)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "generator.pt"
        torch.save(net.state_dict(), whole)
        return convert(whole, target, dtype="fp16")
