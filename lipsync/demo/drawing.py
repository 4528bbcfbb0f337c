"""Teaching the generator to draw: action weights and a face in, the face with that mouth out."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from lipsync.checkpoints import load_generator
from lipsync.core import F32, I64, U8
from lipsync.demo.actions import ACTIONS
from lipsync.demo.frames import TOP, Frames, read_frames
from lipsync.demo.layers import draw_rows, encode_actions, is_drawing, norms, pass_pixels
from lipsync.demo.widths import WIDTHS
from lipsync.model.wav2lip import Wav2Lip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Course:
    """How long and how to train; ``steps`` in all, also when resumed with more."""

    steps: int = 16000
    batch: int = 16
    rate: float = 1.5e-3
    precise: float = 0.1
    """The last share of the steps is done in fp32, those before in bf16, which takes little more than half the time."""
    settle: int = 200
    """After so many steps the BatchNorms keep their statistics, so that training draws what inference draws."""
    seed: int = 0
    save_every: int = 100


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pictures as the network takes them."""

    code: Tensor  # (B, D, 1, 1)
    faces: Tensor  # (B, 6, 96, 96)
    wanted: Tensor  # (B, 3, 96, 96)
    mouth: Tensor  # (B, 1, 96, 96) 0..1


def draw_batch(rng: np.random.Generator, frames: Frames, chosen: I64, *, talking: float = 1 / 6) -> Batch:
    """These frames; a share ``talking`` of them has another mouth of the same view in its reference, as a video has."""
    count, view = len(chosen), frames.view[chosen]
    rest, lower = frames.rest[view], frames.lower[chosen]
    wanted, reference = rest.copy(), rest.copy()
    wanted[:, TOP:] = lower
    mouth = np.zeros((count, 96, 96), np.uint8)
    mouth[:, TOP:] = frames.mouth[chosen]
    for k in np.flatnonzero(rng.random(count) < talking):
        other = rng.choice(np.flatnonzero(frames.view == view[k]))
        reference[k, TOP:] = frames.lower[other]
        mouth[k, TOP:] = np.maximum(mouth[k, TOP:], frames.mouth[other])
    light = rng.uniform(0.93, 1.07, (count, 1, 1, 1)) * rng.uniform(0.97, 1.03, (count, 1, 1, 3))

    def picture(pixels: U8) -> Tensor:
        lit = (pixels * (light / 255)).clip(0, 1).astype(np.float32)
        return torch.from_numpy(lit.transpose(0, 3, 1, 2).copy())

    whole = picture(reference)
    masked = whole.clone()
    masked[:, :, 48:] = 0
    return Batch(
        encode_actions(torch.from_numpy(_heard_like(rng, frames.actions[chosen]))),
        torch.cat((masked, whole), 1).contiguous(memory_format=torch.channels_last),
        picture(wanted),
        torch.from_numpy(mouth[:, None].astype(np.float32) / 255),
    )


def _heard_like(rng: np.random.Generator, actions: F32) -> F32:
    """The ear is never quite sure of nothing: where an action is 0 it says a little less or more than that."""
    below = -np.abs(rng.normal(0, 0.05, actions.shape)) + 0.02
    return np.where(actions <= 0.005, below, actions).astype(np.float32)


def drawing_loss(drawn: Tensor, batch: Batch, *, top: int) -> tuple[Tensor, float]:
    """Weighted L1, its gradient and its means over 4 × 4 pixels, and the plain mouth L1 in grey levels.

    The means count whole lips that stand elsewhere more than edges that are a little soft.
    """
    wanted, mouth = batch.wanted[:, :, top:], batch.mouth[:, :, top:]
    moved = (wanted - batch.faces[:, 3:, top:]).abs().mean(1, keepdim=True)
    weight = 1 + 8 * mouth + 12 * moved.clamp(max=0.5)
    if top:  # the first rows saw padding where the whole network sees pixels
        edge = torch.ones_like(weight)
        edge[:, :, :3] = 0
        weight = weight * edge
    error = drawn - wanted
    tall = (weight[:, :, 1:] * (error[:, :, 1:] - error[:, :, :-1]).abs()).sum()
    wide = (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).sum()
    loss = ((weight * error.abs()).sum() + 0.5 * (tall + wide)) / (3 * weight.sum())
    blocks = nn.functional.avg_pool2d(weight, 4)
    loss = loss + (blocks * nn.functional.avg_pool2d(error, 4).abs()).sum() / (3 * blocks.sum())
    mouth_error = float((error.detach().abs() * mouth).sum() / (3 * mouth.sum() + 1e-6)) * 255
    return loss, mouth_error


class Drawing:
    """A generator in training, with its optimiser and how far it is.

    With ``begin`` it starts with the half that draws of a generator of the same widths, and keeps its BatchNorms'
    statistics from the first step.
    """

    def __init__(self, course: Course, checkpoint: Path, begin: Path | None = None) -> None:
        torch.manual_seed(course.seed)
        self.course, self.checkpoint, self.step = course, checkpoint, 0
        self.net = Wav2Lip(WIDTHS)
        self.kept = pass_pixels(self.net)
        if begin is not None:
            drawing = {name: value for name, value in load_generator(begin).state_dict().items() if is_drawing(name)}
            self.net.load_state_dict(drawing, strict=False)
            self.kept = norms(self.net)
        for norm in norms(self.net):
            norm.momentum = 0.05
        self.trained = [p for name, p in self.net.named_parameters() if is_drawing(name)]
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.Adam(self.trained, course.rate, betas=(0.9, 0.99))
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.net.load_state_dict(saved["net"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step = int(saved["step"])

    def train_step(self, frames: Frames) -> tuple[float, float]:
        """One step; the loss and the mouth's L1. Each fourth step trains whole pictures, the others lower rows."""
        rng = np.random.default_rng([self.course.seed, self.step])
        batch = draw_batch(rng, frames, choose(rng, frames.actions, self.course.batch))
        top = 0 if self.step % 4 == 0 else TOP
        self.net.train()
        settled = norms(self.net) if self.step >= self.course.settle else self.kept
        for norm in settled:
            norm.eval()
        roughly = self.step < (1 - self.course.precise) * self.course.steps
        with torch.autocast("cpu", torch.bfloat16, enabled=roughly):
            drawn = draw_rows(self.net, batch.code, batch.faces, top=top)
        loss, mouth_error = drawing_loss(drawn.float(), batch, top=top)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item(), mouth_error

    def _rate(self) -> float:
        course = self.course
        return (
            course.rate * min(1, (self.step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * self.step / course.steps))
            + 1e-5
        )

    def save(self) -> None:
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step}, unfinished
        )
        unfinished.replace(self.checkpoint)


def choose(rng: np.random.Generator, actions: F32, count: int) -> I64:
    """Which frames a step draws: pursed lips up to three times as often, since they are the slowest to be learned."""
    chance = 1 + 2 * actions[:, ACTIONS.index("mouthPucker")].clip(0, 1).astype(np.float64)
    return rng.choice(len(actions), count, p=chance / chance.sum())


def train_drawing(folder: Path, checkpoint: Path, course: Course, begin: Path | None = None) -> Wav2Lip:
    """Train, or go on from the checkpoint, until the course is done."""
    drawing, began, running = Drawing(course, checkpoint, begin), time.monotonic(), np.zeros(2)
    frames = read_frames(folder)
    while drawing.step < course.steps:
        now = np.array(drawing.train_step(frames))
        running = now if not running.any() else 0.97 * running + 0.03 * now
        if drawing.step % course.save_every == 0 or drawing.step == course.steps:
            drawing.save()
            log.info(
                "step %d, %.0f s, loss %.5f, mouth L1 %.2f of 255", drawing.step, time.monotonic() - began, *running
            )
            contact(drawing.net, frames, checkpoint.with_name("drawing.png"))
    return drawing.net.eval()


def contact(net: Wav2Lip, frames: Frames, path: Path, *, columns: int = 12) -> None:
    """Wanted above, drawn below, some open, some round and some other mouths of each person's first view."""
    net.eval()
    rng = np.random.default_rng(3)
    rows = []
    for view in range(0, min(48, len(frames.rest)), 12):
        mine = np.flatnonzero(frames.view == view)
        widest = mine[np.argsort(-frames.actions[mine][:, ACTIONS.index("jawOpen")])][:3]
        roundest = mine[np.argsort(-frames.actions[mine][:, ACTIONS.index("mouthPucker")])][:3]
        picked = np.concatenate([widest, roundest, rng.choice(mine, columns - 6)])
        batch = draw_batch(rng, frames, picked, talking=0)
        with torch.inference_mode():
            drawn = draw_rows(net, batch.code, batch.faces)
        for pictures in (batch.wanted, drawn):
            shown = (pictures.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
            rows.append(np.hstack(list(shown[:, 40:])))
    cv2.imwrite(str(path), cv2.resize(np.vstack(rows), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC))
