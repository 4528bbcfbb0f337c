"""Teaching the voice encoder to hear: mel windows in, what the mouth does out."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import librosa
import numpy as np
import torch
from torch import Tensor, nn

from lipsync.core import F32
from lipsync.demo.actions import ACTIONS, SPOKEN
from lipsync.demo.corpus import WINDOW, Corpus, join, tuning_utterances
from lipsync.demo.measures import correlation, lag
from lipsync.demo.speech import Utterance
from lipsync.demo.widths import WIDTHS
from lipsync.model.wav2lip import Wav2Lip

HEARD = [ACTIONS.index(name) for name in SPOKEN]
_WEIGHT = {"jawOpen": 3.0, "mouthFunnel": 1.5, "mouthPucker": 1.5, "mouthPress": 1.0}
LARGEST_GAIN = 2.0
_THROAT_OCTAVES = 0.25
_NEAR = 160
"""Columns, two seconds: a few syllables."""
_EFFORT_DB = 5.0
_WIDER = 1.35
"""How many times as far the jaw opens for 10 dB more. That loud speech opens it further is known (Schulman 1989,
Geumann 2001); how much further differs between speakers and vowels, and is our choice."""
_LEVEL_DB = 0.08
"""What a decibel is in a mel window."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Course:
    """How long and how to train; ``steps`` in all, also when resumed."""

    steps: int = 17000
    batch: int = 128
    rate: float = 2e-3
    decay: float = 1e-2
    together: int = 8
    """Windows of a batch that follow one another closely, so most often in one voice."""
    spread: float = 0.5
    """Weight of how far they move together, beside where each of them is."""
    averaged: int = 400
    """What is kept is the mean of the weights over about so many steps."""
    seed: int = 0
    save_every: int = 250


class Hearing(nn.Module):
    """The generator's voice encoder with a linear head onto the spoken actions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = Wav2Lip(WIDTHS).audio_encoder
        self.head = nn.Linear(WIDTHS.voice[-1], len(HEARD))
        self.register_buffer("mean", torch.zeros(len(HEARD)))
        self.register_buffer("spread", torch.ones(len(HEARD)))

    def embed(self, windows: Tensor) -> Tensor:
        """(B, 80, 16) → (B, C), what the generator's decoder is given."""
        out: Tensor = self.encoder(windows[:, None]).flatten(1)
        return out

    def actions(self, embedding: Tensor) -> Tensor:
        """(B, C) → (B, spoken) action weights."""
        told: Tensor = self.head(embedding) * self.get_buffer("spread") + self.get_buffer("mean")
        return told


def hear(hearing: Hearing, windows: F32, *, batch: int = 512) -> tuple[F32, F32]:
    """Embeddings (n, C) and all action weights (n, actions) for windows (n, 80, 16)."""
    hearing.eval()
    embedded, heard = [], []
    with torch.inference_mode():
        for k in range(0, len(windows), batch):
            embedding = hearing.embed(torch.from_numpy(windows[k : k + batch]))
            embedded.append(embedding.numpy())
            heard.append(hearing.actions(embedding).numpy())
    actions = np.zeros((len(windows), len(ACTIONS)), np.float32)
    actions[:, HEARD] = np.concatenate(heard)
    return np.concatenate(embedded), actions


def measure_hearing(hearing: Hearing, said: list[Utterance]) -> dict[str, float]:
    """Correlations and spreads on these utterances, at 25 frames a second, means over them."""
    rows = []
    for one in said:
        corpus = join([one])
        starts = np.floor(80 * np.arange(int(len(one.track) / 3.2)) / 25).astype(np.int64)
        _, heard = hear(hearing, corpus.windows(starts))
        true = one.track[starts]
        row = {name: correlation(heard[:, k], true[:, k]) for name, k in _NAMED.items()}
        row["amplitude"] = float(heard[:, 0].std() / true[:, 0].std())
        row["lag0"] = float(lag(heard[:, 0], true[:, 0]) == 0)
        rows.append(row)
    return {key: round(float(np.nanmean([row[key] for row in rows])), 3) for key in rows[0]}


_NAMED = {name: ACTIONS.index(name) for name in ("jawOpen", "mouthFunnel", "mouthPucker", "mouthPress", "mouthSmile")}


def restore_spread(hearing: Hearing, said: list[Utterance]) -> F32:
    """How much each heard action must be widened to move as far as the true one, (spoken,) float32.

    An ear trained on squared error moves less where it is unsure; a mouth that moves less looks like mumbling. How
    unsure it is of voices that it does not know, only such voices tell: ``said`` is in neither training nor measures.
    """
    corpus = join(said)
    _, heard = hear(hearing, corpus.windows(corpus.starts))
    true = corpus.track[corpus.starts][:, HEARD].std(0)
    gain = true / np.maximum(heard[:, HEARD].std(0), 1e-6)
    return np.asarray(np.clip(gain, 1, LARGEST_GAIN), np.float32)


class Training:
    """An ear in training, with its optimiser, the running mean of its weights, and how far it is."""

    def __init__(self, corpus: Corpus, course: Course, checkpoint: Path) -> None:
        torch.manual_seed(course.seed)
        self.course, self.checkpoint, self.step = course, checkpoint, 0
        self.hearing, self.mean = Hearing(), Hearing()
        self.mel, self.starts = torch.from_numpy(corpus.mel.T.copy()), torch.from_numpy(corpus.starts)
        self.track = torch.from_numpy(corpus.track[:, HEARD])
        told = self.track[self.starts]
        self.hearing.get_buffer("mean").copy_(told.mean(0))
        self.hearing.get_buffer("spread").copy_(told.std(0).clamp(min=1e-3))
        self.mean.load_state_dict(self.hearing.state_dict())
        self.weight = torch.tensor([_WEIGHT.get(name, 0.5) for name in SPOKEN])
        self.optimiser = torch.optim.AdamW(self.hearing.parameters(), course.rate, weight_decay=course.decay)
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.hearing.load_state_dict(saved["trained"])
            self.mean.load_state_dict(saved["hearing"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step = int(saved["step"])
        self.hearing.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train_step(self) -> float:
        """One step; the loss."""
        course, hearing = self.course, self.hearing
        generator = torch.Generator().manual_seed(course.seed * 1_000_003 + self.step)
        hearing.train()
        chosen = self._draw(generator)
        clean = self.mel[chosen[:, None] + torch.arange(WINDOW)].permute(0, 2, 1)
        windows, track = with_effort(clean, self.track[chosen], generator)
        windows = roughen(windows, generator)
        wanted = (track - hearing.get_buffer("mean")) / hearing.get_buffer("spread")
        with torch.autocast("cpu", torch.bfloat16):
            embedding = hearing.embed(windows)
        loss = self._loss(hearing.head(embedding.float()), wanted)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step()
        self.step += 1
        self._follow()
        return float(loss.item())

    def _draw(self, generator: torch.Generator) -> Tensor:
        """(batch,) columns at which windows begin, in groups out of two seconds each."""
        together = self.course.together
        first = torch.randint(len(self.starts), (self.course.batch // together, 1), generator=generator)
        near = first + torch.randint(_NEAR, (len(first), together), generator=generator)
        return self.starts[near.clamp(max=len(self.starts) - 1)].flatten()

    def _loss(self, told: Tensor, wanted: Tensor) -> Tensor:
        """Squared error alone makes an ear move less where it is unsure, in some voices by half; so how far a group
        of windows moves is compared too."""
        at = ((told - wanted) ** 2 * self.weight).mean()
        error = (self._moved(told) - self._moved(wanted)) ** 2
        return at + self.course.spread * (error * self.weight).mean()

    def _moved(self, actions: Tensor) -> Tensor:
        """(groups, spoken), the spread within each group; never quite nothing, where a root has no slope."""
        return torch.sqrt(actions.reshape(-1, self.course.together, actions.shape[1]).var(1) + 1e-4)

    def _rate(self) -> float:
        course = self.course
        falling = 0.5 + 0.5 * math.cos(math.pi * self.step / course.steps)
        return course.rate * min(1, (self.step + 1) / 100) * falling + 1e-5

    def _follow(self) -> None:
        """The mean of about the last ``averaged`` steps, fewer at the beginning."""
        share = 1 / min(self.step, self.course.averaged)
        held = self.mean.state_dict()
        with torch.no_grad():
            for name, value in self.hearing.state_dict().items():
                if value.is_floating_point():
                    held[name].lerp_(value, share)

    def save(self) -> None:
        unfinished = self.checkpoint.with_suffix(".tmp")
        kept = {
            "hearing": self.mean.state_dict(),
            "trained": self.hearing.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        torch.save(kept, unfinished)
        unfinished.replace(self.checkpoint)


def with_effort(windows: Tensor, track: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The windows (B, 80, 16) spoken more softly or loudly, and the mouths (B, spoken) with jaws that open as much less
    or more: the synthesiser says every syllable with the same effort, people do not."""
    effort_db = (_EFFORT_DB * torch.randn(len(windows), generator=generator)).clamp(-2 * _EFFORT_DB, 2 * _EFFORT_DB)
    spoken = torch.where(windows > -3.95, windows + _LEVEL_DB * effort_db[:, None, None], windows)
    jaw, track = SPOKEN.index("jawOpen"), track.clone()
    track[:, jaw] = (track[:, jaw] * _WIDER ** (effort_db / 10)).clamp(max=1.1)
    return spoken.clamp(-4, 4), track


def roughen(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Windows (B, 80, 16) as other microphones and throats would give them; what is silent stays silent."""
    count, bands, _ = windows.shape
    table = _stretches()
    at = table[torch.randint(len(table), (count,), generator=generator)][:, :, None].expand_as(windows)
    below = at.floor().clamp(max=bands - 2)
    windows = torch.lerp(windows.gather(1, below.long()), windows.gather(1, below.long() + 1), at - below)
    waves = torch.cos(math.pi * torch.arange(6)[:, None] * (torch.arange(bands) + 0.5) / bands)
    size = torch.tensor([0.25, 0.3, 0.2, 0.15, 0.1, 0.1])
    colour = (torch.randn(count, 6, generator=generator) * size) @ waves
    rough = (windows + colour[:, :, None] * (windows > -3.95)).clamp(-4, 4)
    noisy = torch.rand(count, 1, 1, generator=generator) < 0.25
    floor = -4 + 1.5 * torch.rand(count, 1, 1, generator=generator)
    hiss = floor + 0.15 * torch.randn(windows.shape, generator=generator)
    return torch.where(noisy, torch.maximum(rough, hiss), rough)


@cache
def _stretches() -> Tensor:
    """(33, 80): where each band of a longer or shorter throat's sound lies among those of the one that was heard."""
    centres_hz = librosa.mel_frequencies(n_mels=82, fmin=55, fmax=7600)[1:-1]
    throats = 2 ** np.linspace(-_THROAT_OCTAVES, _THROAT_OCTAVES, 33)
    bands = [np.interp(centres_hz * throat, centres_hz, np.arange(80)) for throat in throats]
    return torch.from_numpy(np.array(bands, np.float32))


def train_hearing(corpus: Corpus, checkpoint: Path, course: Course) -> Hearing:
    """Train, or go on from the checkpoint, until the course's steps are done; saved as it goes."""
    training = Training(corpus, course, checkpoint)
    began, running = time.monotonic(), 0.0
    while training.step < course.steps:
        loss = training.train_step()
        running = loss if not running else 0.98 * running + 0.02 * loss
        last = training.step == course.steps
        if training.step % course.save_every == 0 or last:
            measure = last or training.step % (4 * course.save_every) == 0
            measured = measure_hearing(training.mean, tuning_utterances()) if measure else ""
            log.info("step %d, %.0f s, loss %.4f %s", training.step, time.monotonic() - began, running, measured)
            training.save()
    return training.mean.eval()


def load_hearing(checkpoint: Path) -> Hearing:
    """The trained voice encoder, in eval mode."""
    hearing = Hearing()
    hearing.load_state_dict(torch.load(checkpoint, weights_only=True)["hearing"])
    return hearing.eval()
