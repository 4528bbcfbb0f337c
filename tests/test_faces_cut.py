"""Scene cuts on synthetic pictures (the small end of what the threshold was measured on) and on real clips."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from lipsync.core import U8
from lipsync.faces.cut import THRESHOLD, distance, is_cut, signature


def scene(seed: int, width: int = 640, height: int = 360) -> U8:
    """A picture of soft coloured patches; another seed, another scene of much the same brightness."""
    patches = np.random.default_rng(seed).integers(20, 236, (6, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def brighter(picture: U8, by: float) -> U8:
    return np.clip(picture * by, 0, 255).astype(np.uint8)


def largest_step(pictures: list[U8]) -> float:
    return max(distance(a, b) for a, b in pairwise(map(signature, pictures)))


def test_another_picture_is_a_cut() -> None:
    for seed in range(20):
        assert is_cut(signature(scene(seed)), signature(scene(seed + 100)))


def test_a_cut_to_the_mirror_image_or_a_closer_view_is_a_cut() -> None:
    picture = scene(1)
    closer = np.asarray(cv2.resize(picture[90:270, 160:480], (640, 360)), np.uint8)
    assert is_cut(signature(picture), signature(picture[:, ::-1]))
    assert is_cut(signature(picture), signature(closer))


def test_noise_is_no_cut() -> None:
    rng = np.random.default_rng(0)
    noisy = [np.clip(scene(1) + rng.normal(0, 20, (360, 640, 3)), 0, 255).astype(np.uint8) for _ in range(5)]
    assert largest_step(noisy) < THRESHOLD / 4


def test_flickering_light_is_no_cut() -> None:
    picture = brighter(scene(2), 0.8)
    assert largest_step([brighter(picture, 1 + 0.15 * (-1) ** n) for n in range(6)]) < THRESHOLD / 2


def test_a_slow_pan_is_no_cut_at_any_frame() -> None:
    wide = scene(3, width=1200)
    assert largest_step([wide[:, 16 * n : 16 * n + 640] for n in range(30)]) < THRESHOLD


def test_a_fade_to_black_has_no_cut_before_it_is_black() -> None:
    fade = [brighter(scene(4), 1 - n / 25) for n in range(26)]
    assert largest_step(fade[:22]) < THRESHOLD


def test_a_dissolve_is_no_cut() -> None:
    a, b = scene(5), scene(6)
    assert largest_step([cv2.addWeighted(a, 1 - n / 25, b, n / 25, 0) for n in range(26)]) < THRESHOLD


@pytest.mark.parametrize("size", [(64, 64), (640, 10), (3, 640), (1, 1), (639, 361)])
def test_any_shape_has_a_signature(size: tuple[int, int]) -> None:
    mark = signature(scene(1, *size))
    assert mark.shape == (16, 3, 16) and mark.dtype == np.float32
    assert distance(mark, mark) == 0


@pytest.mark.needs_assets
@pytest.mark.parametrize("name", ["latentsync_demo1_video.mp4", "facenet_video.mp4"])
def test_real_clips_of_one_shot_have_no_cut(assets: Path, name: str) -> None:
    with av.open(str(assets / name)) as container:
        frames = [frame.reformat(width=frame.width // 3, height=frame.height // 3).to_ndarray(format="bgr24")
                  for n, frame in enumerate(container.decode(video=0)) if n < 75]  # fmt: skip
    assert largest_step(frames) < THRESHOLD / 3
    assert largest_step(frames[::5]) < THRESHOLD
