"""Crops and pastes: the reference's arithmetic, no seam, and nothing changed outside the box."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.compose import crop_face, draw_label, feather_mask, paste
from lipsync.core import Color
from lipsync.media.picture import Picture
from lipsync.options import Options
from tests.media_factory import background


def picture(width: int = 200, height: int = 150, number: int = 0) -> Picture:
    noise = np.random.default_rng(number).integers(-12, 12, (height, width, 3))
    return Picture.from_bgr(np.clip(background(number, width, height) + noise, 0, 255).astype(np.uint8))


def patch(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)


boxes = st.tuples(st.integers(0, 100), st.integers(0, 80), st.integers(8, 100), st.integers(8, 70)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(box=boxes)
@settings(max_examples=40, deadline=None)
def test_without_blending_the_frame_is_the_references_pixel_for_pixel(box):
    source, made = picture(), patch()
    x1, y1, x2, y2 = box
    wanted = source.bgr()  # the reference: the whole frame in BGR, the resized patch written over the box
    wanted[y1:y2, x1:x2] = cv2.resize(made, (x2 - x1, y2 - y1))
    pasted = paste(source, box, made, Options(blend="none"))
    assert (pasted.bgr() == wanted).all()
    assert (pasted.bgr((x1, y1, x2, y2)) == wanted[y1:y2, x1:x2]).all()


@given(box=boxes)
@settings(max_examples=40, deadline=None)
def test_the_crop_is_the_references_crop_of_the_whole_frame(box):
    source = picture()
    x1, y1, x2, y2 = box
    assert (crop_face(source, box) == cv2.resize(source.bgr()[y1:y2, x1:x2], (96, 96))).all()


@pytest.mark.parametrize("blend", ["none", "feather"])
@given(box=boxes)
@settings(max_examples=25, deadline=None)
def test_no_sample_outside_the_box_changes(blend, box):
    source = picture()
    pasted = paste(source, box, patch(), Options(blend=blend))
    x1, y1, x2, y2 = box
    luma = np.ones(source.y.shape, bool)
    luma[y1:y2, x1:x2] = False
    chroma = np.ones(source.u.shape, bool)
    chroma[y1 // 2 : (y2 + 1) // 2, x1 // 2 : (x2 + 1) // 2] = False
    assert (pasted.y[luma] == source.y[luma]).all()
    assert (pasted.u[chroma] == source.u[chroma]).all()
    assert (pasted.v[chroma] == source.v[chroma]).all()
    assert (pasted.y != source.y).any()


@given(box=boxes)
@settings(max_examples=40, deadline=None)
def test_leaving_out_what_the_mask_hides_changes_no_sample(box):
    source, made = picture(), patch()
    x1, y1, x2, y2 = box
    fitted = cv2.resize(made, (x2 - x1, y2 - y1))
    whole = source.with_patch(box, fitted, feather_mask(x2 - x1, y2 - y1))
    pasted = paste(source, box, made, Options())
    assert all((getattr(pasted, plane) == getattr(whole, plane)).all() for plane in "yuv")
    assert pasted.box[1] > y1 or y2 - y1 < 24, "there is something to leave out"


def step_at_border(frame: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """How much luma jumps across the left, right and lower border of a box, on average."""
    x1, y1, x2, y2 = box
    y = frame.astype(float)
    sides = np.abs(y[y1:y2, x1] - y[y1:y2, x1 - 1]).mean() + np.abs(y[y1:y2, x2] - y[y1:y2, x2 - 1]).mean()
    return float(sides + np.abs(y[y2, x1:x2] - y[y2 - 1, x1:x2]).mean()) / 3


def test_feathering_leaves_no_step_at_the_borders_where_overwriting_does():
    flat = Picture.from_bgr(np.full((150, 200, 3), 90, np.uint8))
    brighter = np.full((96, 96, 3), 150, np.uint8)
    box = (40, 20, 160, 130)
    hard = step_at_border(paste(flat, box, brighter, Options(blend="none")).y, box)
    soft = step_at_border(paste(flat, box, brighter, Options()).y, box)
    assert hard > 40
    assert soft < 2


def test_the_mask_shows_the_whole_mouth_and_none_of_the_eyes():
    mask = feather_mask(100, 120)
    assert mask.shape == (120, 100)
    assert (mask[60:105, 20:80] == 1).all(), "the lower half, where the mouth is, is all the generator's"
    assert (mask[:48] == 0).all(), "down to 0.40 of the box, where the eyes are, the source's pixels stay"
    assert mask[50].max() < 0.15, "and the lowest eyes that were measured (0.42) all but stay"
    assert mask[:, 0].max() < 0.02 and mask[-1].max() < 0.05


def test_a_label_stands_in_the_corner_and_nowhere_else():
    source = picture(640, 360)
    labelled = draw_label(source)
    changed = np.argwhere(labelled.y != source.y)
    assert len(changed) > 500
    assert changed[:, 0].min() > 300 and changed[:, 1].max() < 250


@pytest.mark.parametrize("size", [(64, 64), (65, 71), (4096, 64), (20, 11), (5, 90)])
def test_a_label_fits_every_size(size):
    assert draw_label(picture(*size)).y.shape == (size[1], size[0])


def test_pasting_keeps_the_sources_colour_description():
    source = Picture.from_bgr(background(0, 100, 100), Color("bt601", True))
    assert paste(source, (10, 10, 60, 60), patch(), Options()).color == Color("bt601", True)
