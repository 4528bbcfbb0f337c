"""Training pictures: many views of the cast, in each of them many mouths, with the actions that made them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lipsync.core import F32, I64, U8
from lipsync.demo.actions import ACTIONS, SPOKEN
from lipsync.demo.cast import CAST, Role
from lipsync.demo.corpus import Corpus
from lipsync.demo.framing import Box, crop96, draw_box
from lipsync.demo.parts import write_parts
from lipsync.demo.person import Person
from lipsync.demo.scene import Frame, Portrait, Pose, resting

TOP = 40
"""The first of the 96 rows that a moving mouth can change; above it every frame of a view is the same."""


@dataclass(frozen=True, slots=True)
class View:
    """One person in one pose, seen through one box."""

    role: int
    pose: Pose
    box: Box


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Pictures of several views."""

    rest: U8  # (V, 96, 96, 3) BGR, the view with closed lips
    lower: U8  # (N, 96 - TOP, 96, 3) the view with these actions, from row TOP
    mouth: U8  # (N, 96 - TOP, 96) 0..255 where the mouth is, open or shut
    view: I64  # (N,)
    actions: F32  # (N, actions) what speech adds to the resting face


def portrait_of(role: Role) -> Portrait:
    """The renderer of one member of the cast."""
    return Portrait(Person(role.looks), role.light, role.background)


def draw_view(rng: np.random.Generator, index: int, portrait: Portrait, *, own: bool, frame: Frame) -> View:
    """The still's own pose, or another; in a box somewhat like a detector's."""
    pose = CAST[index].pose
    if not own:
        pose = Pose(
            float(pose.yaw * 0.5 + rng.normal(0, 0.13)),
            float(pose.pitch + rng.normal(0, 0.05)),
            float(rng.normal(0, 0.03)),
        )
    return View(index, pose, draw_box(rng, portrait, pose, frame, spread=1.0 if own else 1.3))


class ViewPainter:
    """Draws one view's frames: the resting picture once, then only what lies below its upper rows."""

    def __init__(self, portrait: Portrait, view: View, frame: Frame, *, oversample: int = 2) -> None:
        self.portrait, self.view, self.frame, self.oversample = portrait, view, frame, oversample
        x1, y1, x2, y2 = view.box
        self.cut = int((y2 - y1) * (TOP - 1) / 96) - 1
        self.below: Box = (x1, y1 + self.cut, x2, y2)
        self.still, self.lips = portrait.draw(resting(), view.pose, frame, box=view.box, oversample=oversample)
        self.rest = crop96(self.still)

    def paint(self, actions: F32) -> tuple[U8, U8]:
        """The 96 × 96 frame with these spoken actions; where its mouth or the resting lips are, (96, 96) 0..255."""
        shown = resting() + actions
        picture, mouth = self.still.copy(), self.lips.copy()
        lower, lips = self.portrait.draw(shown, self.view.pose, self.frame, box=self.below, oversample=self.oversample)
        picture[self.cut :] = lower
        mouth[self.cut :] = np.maximum(mouth[self.cut :], lips)
        mask = cv2.resize(mouth, (96, 96), interpolation=cv2.INTER_AREA)
        return crop96(picture), (mask * 255).astype(np.uint8)


def draw_actions(rng: np.random.Generator, corpus: Corpus, count: int) -> F32:
    """Mouths of speech, open and rounded ones more often than speech has them, spread wider and narrower, some shut.

    A quarter purses, funnels and opens each on its own account: speech does these together, so that what each of them
    alone looks like would never be learned.
    """
    track = corpus.track[corpus.starts]
    names = ("jawOpen", "mouthFunnel", "mouthPucker")
    chance = 0.2 + track[:, [ACTIONS.index(name) for name in names]].sum(1)
    picked = np.searchsorted(np.cumsum(chance / chance.sum()), rng.random(count)).clip(max=len(track) - 1)
    actions = track[picked] * rng.uniform(0.6, 1.25, (count, 1))
    other = track[rng.integers(0, len(track), count)]
    mixed = rng.random(count) < 0.3
    share = rng.random((count, 1))
    actions[mixed] = (actions * share + other * (1 - share))[mixed]
    actions *= np.where(rng.random((count, 1)) < 0.3, rng.uniform(0.7, 1.3, (count, len(ACTIONS))), 1)
    apart = rng.random(count) < 0.25
    rounded = np.stack([rng.random(count) ** 2, rng.random(count) * 0.8, rng.random(count)], 1)
    for k, name in enumerate(names):
        actions[apart, ACTIONS.index(name)] = rounded[apart, k]
    actions[rng.random(count) < 0.06] = 0
    spoken = np.isin(ACTIONS, SPOKEN)
    return np.where(spoken, np.clip(actions, 0, 1.2), 0).astype(np.float32)


def make_frames(
    folder: Path,
    corpus: Corpus,
    *,
    parts: int,
    seed: int = 7,
    views: int = 12,
    per_view: int = 50,
    own_share: float = 0.5,
    workers: int = 1,
) -> None:
    """Write parts of len(CAST) × views × per_view frames each; parts that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    write_parts(
        {
            folder / f"frames_{seed}_{part:03d}.npz": partial(
                _paint_part, seed, part, corpus, views, per_view, own_share
            )
            for part in range(parts)
        },
        workers=workers,
    )


def _paint_part(
    seed: int, part: int, corpus: Corpus, views: int, per_view: int, own_share: float
) -> dict[str, npt.NDArray[np.generic]]:
    rng = np.random.default_rng([seed, part])
    portraits = [portrait_of(role) for role in CAST]
    frames = _draw_part(rng, portraits, corpus, views=views, per_view=per_view, own_share=own_share)
    return {field.name: getattr(frames, field.name) for field in fields(Frames)}


def _draw_part(
    rng: np.random.Generator, portraits: list[Portrait], corpus: Corpus, *, views: int, per_view: int, own_share: float
) -> Frames:
    frame = Frame()
    rest: list[U8] = []
    lower, mouth, view_of, said = [], [], [], []
    for index, portrait in enumerate(portraits):
        for k in range(views):
            is_own = k < own_share * views
            wide = replace(frame, per_m=frame.per_m * (1 if is_own else rng.uniform(0.8, 1.1)))
            painter = ViewPainter(portrait, draw_view(rng, index, portrait, own=is_own, frame=wide), wide)
            for actions in draw_actions(rng, corpus, per_view):
                picture, mask = painter.paint(actions)
                lower.append(picture[TOP:])
                mouth.append(mask[TOP:])
                view_of.append(len(rest))
                said.append(actions)
            rest.append(painter.rest)
    return Frames(np.stack(rest), np.stack(lower), np.stack(mouth), np.array(view_of), np.stack(said))


def read_frames(folder: Path, *, limit: int | None = None) -> Frames:
    """All parts under the folder, or the first ``limit`` of them, as one."""
    parts, at = [], 0
    for path in sorted(folder.glob("frames_*[0-9].npz"))[:limit]:
        with np.load(path) as part:
            data = {key: part[key] for key in part.files}
        data["view"] = data["view"] + at
        at += len(data["rest"])
        parts.append(data)
    if not parts:
        raise FileNotFoundError(f"{folder} holds no frames yet; run `python -m lipsync.demo frames` first.")
    return Frames(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
