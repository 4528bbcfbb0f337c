"""A corpus of utterances on disk: every mel column and the mouth that belongs to it, ready to be drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lipsync.core import F32, I64
from lipsync.demo.espeak import Voice, synthesiser
from lipsync.demo.parts import apart, write_parts
from lipsync.demo.sentences import HELD_OUT, TUNING
from lipsync.demo.speech import Utterance, draw_utterance, utter
from lipsync.demo.voices import FAMILIAR_VARIANTS, HELD_OUT_VARIANTS, TUNING_VARIANTS
from lipsync.voice.mel import SILENCE

WINDOW = 16
"""Mel columns that the generator hears for one frame."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Utterances one after the other, each followed by a window's width of silence."""

    mel: F32  # (80, N)
    track: F32  # (N, actions), row c is the mouth of the window that begins at column c
    starts: I64  # (M,) columns at which a window belongs to an utterance

    def windows(self, starts: I64) -> F32:
        """(n, 80, 16) for n starts."""
        return np.ascontiguousarray(self.mel[:, starts[:, None] + np.arange(WINDOW)].transpose(1, 0, 2))


def join(utterances: list[Utterance]) -> Corpus:
    """One corpus of these utterances."""
    gap = np.full((80, WINDOW), SILENCE, np.float32)
    mels, tracks, starts, at = [], [], [], 0
    for one in utterances:
        mels += [one.mel, gap]
        tracks += [one.track, np.zeros((WINDOW, one.track.shape[1]), np.float32)]
        starts.append(np.arange(at, at + one.mel.shape[1]))
        at += one.mel.shape[1] + WINDOW
    return Corpus(np.concatenate(mels, 1), np.concatenate(tracks), np.concatenate(starts))


def held_out_utterances() -> list[Utterance]:
    """The kept-back sentences in kept-back voices, clean, twelve of them."""
    return apart(partial(_recite, HELD_OUT, HELD_OUT_VARIANTS))


def tuning_utterances() -> list[Utterance]:
    """Other sentences, one in each voice that neither training nor the measures hear: for the export's choice."""
    texts = [TUNING[k % len(TUNING)] for k in range(len(TUNING_VARIANTS))]
    return apart(partial(_recite, texts, TUNING_VARIANTS))


def familiar_utterances() -> list[Utterance]:
    """The kept-back sentences in voices that training hears, clean: how much of an error is the voice's."""
    return apart(partial(_recite, HELD_OUT, FAMILIAR_VARIANTS))


def _recite(sentences: Sequence[str], variants: Sequence[str]) -> list[Utterance]:
    voices = [
        Voice(f"en-us+{variants[k % len(variants)]}", 140 + 5 * (k % 12), 40 + 2 * (k % 12))
        for k in range(len(sentences))
    ]
    return [utter(synthesiser().say(text, voice)) for text, voice in zip(sentences, voices, strict=True)]


def make_corpus(folder: Path, *, seed: int, count: int, part: int = 250, workers: int = 1) -> None:
    """Write ``count`` drawn utterances as parts under the folder; parts that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, count, part)
    write_parts(
        {
            folder / f"speech_{seed}_{first:05d}.npz": partial(_speak_part, seed, first, min(part, count - first))
            for first in firsts
        },
        workers=workers,
    )


def _speak_part(seed: int, first: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
    rng = np.random.default_rng([seed, first])
    corpus = join([draw_utterance(rng) for _ in range(count)])
    return {
        "mel": corpus.mel.astype(np.float16), "track": corpus.track.astype(np.float16), "starts": corpus.starts
    }  # fmt: skip


def read_corpus(folder: Path, *, limit: int | None = None) -> Corpus:
    """All parts under the folder as one corpus, or the first ``limit`` of them."""
    mels, tracks, starts, at = [], [], [], 0
    for path in sorted(folder.glob("speech_*[0-9].npz"))[:limit]:
        with np.load(path) as part:
            mels.append(part["mel"].astype(np.float32))
            tracks.append(part["track"].astype(np.float32))
            starts.append(part["starts"] + at)
        at += mels[-1].shape[1]
    if not mels:
        raise FileNotFoundError(f"{folder} holds no speech yet; run `python -m lipsync.demo speech` first.")
    return Corpus(np.concatenate(mels, 1), np.concatenate(tracks), np.concatenate(starts))
