"""Teaching the voice encoder to hear: mel windows in, what the mouth does out."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lipsync.core import F32
from lipsync.demo.actions import ACTIONS, SPOKEN
from lipsync.demo.corpus import Corpus, held_out_utterances, join
from lipsync.demo.measures import correlation, lag
from lipsync.demo.widths import WIDTHS
from lipsync.model.wav2lip import Wav2Lip

HEARD = [ACTIONS.index(name) for name in SPOKEN]
_WEIGHT = {"jawOpen": 3.0, "mouthFunnel": 1.5, "mouthPucker": 1.5, "mouthPress": 1.0}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Course:
    """How long and how to train; ``steps`` in all, also when resumed."""

    steps: int = 6000
    batch: int = 128
    rate: float = 2e-3
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


def measure_hearing(hearing: Hearing) -> dict[str, float]:
    """Correlations and spreads on held-out sentences and voices, at 25 frames a second, means over sequences."""
    rows = []
    for one in held_out_utterances():
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


def train_hearing(corpus: Corpus, checkpoint: Path, course: Course) -> Hearing:
    """Train, or go on from the checkpoint, until the course's steps are done; saved as it goes."""
    torch.manual_seed(course.seed)
    hearing = Hearing()
    track = torch.from_numpy(corpus.track[:, HEARD])
    told = track[torch.from_numpy(corpus.starts)]
    hearing.get_buffer("mean").copy_(told.mean(0))
    hearing.get_buffer("spread").copy_(told.std(0).clamp(min=1e-3))
    weight = torch.tensor([_WEIGHT.get(name, 0.5) for name in SPOKEN])
    optimiser = torch.optim.AdamW(hearing.parameters(), course.rate, weight_decay=1e-3)
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        hearing.load_state_dict(saved["hearing"])
        optimiser.load_state_dict(saved["optimiser"])
        step = int(saved["step"])
    hearing.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mel, starts, reach = torch.from_numpy(corpus.mel.T.copy()), torch.from_numpy(corpus.starts), torch.arange(16)
    began, running = time.monotonic(), 0.0
    while step < course.steps:
        generator = torch.Generator().manual_seed(course.seed * 1_000_003 + step)
        hearing.train()
        chosen = starts[torch.randint(len(starts), (course.batch,), generator=generator)]
        windows = mel[chosen[:, None] + reach].permute(0, 2, 1)
        shift = torch.randn(course.batch, 1, 1, generator=generator) * 0.2
        windows = (windows + shift * (windows > -3.95)).clamp(-4, 4)
        wanted = (track[chosen] - hearing.get_buffer("mean")) / hearing.get_buffer("spread")
        loss = ((hearing.head(hearing.embed(windows)) - wanted) ** 2 * weight).mean()
        for group in optimiser.param_groups:
            group["lr"] = (
                course.rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / course.steps)) + 1e-5
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
        if step % course.save_every == 0 or step == course.steps:
            measured = measure_hearing(hearing) if step % (4 * course.save_every) == 0 or step == course.steps else ""
            log.info("step %d, %.0f s, loss %.4f %s", step, time.monotonic() - began, running, measured)
            _save(checkpoint, hearing, optimiser, step)
    hearing.eval()
    return hearing


def _save(path: Path, hearing: Hearing, optimiser: torch.optim.Optimizer, step: int) -> None:
    unfinished = path.with_suffix(".tmp")
    torch.save({"hearing": hearing.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, unfinished)
    unfinished.replace(path)


def load_hearing(checkpoint: Path) -> Hearing:
    """The trained voice encoder, in eval mode."""
    hearing = Hearing()
    hearing.load_state_dict(torch.load(checkpoint, weights_only=True)["hearing"])
    return hearing.eval()
