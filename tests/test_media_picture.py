"""Pictures: box conversions equal the whole's, patches touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_factory import background

from lipsync.core import U8, Color
from lipsync.media.picture import Picture

COLORS = [Color(), Color("bt601"), Color("bt709", full_range=True), Color("bt2020")]


def random_picture(width: int, height: int, color: Color, seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    half = ((height + 1) // 2, (width + 1) // 2)
    planes: list[U8] = [rng.integers(16, 236, shape, dtype=np.uint8) for shape in ((height, width), half, half)]
    for plane in planes:
        plane.setflags(write=False)
    return Picture(*planes, color)


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> tuple[int, int, int, int]:
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))


def expected_bgr(picture: Picture) -> np.ndarray:
    """The conversion written out pixel by pixel: chroma between cell centres, then the standard's equations."""
    height, width = picture.y.shape

    def sample(plane: U8) -> np.ndarray:
        rows = np.clip((np.arange(height) - 0.5) / 2, 0, plane.shape[0] - 1)
        columns = np.clip((np.arange(width) - 0.5) / 2, 0, plane.shape[1] - 1)
        top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
        bottom, right = np.minimum(top + 1, plane.shape[0] - 1), np.minimum(left + 1, plane.shape[1] - 1)
        down, across = (rows - top)[:, None], (columns - left)[None, :]
        values = plane.astype(float)
        upper = values[top][:, left] * (1 - across) + values[top][:, right] * across
        lower = values[bottom][:, left] * (1 - across) + values[bottom][:, right] * across
        return upper * (1 - down) + lower * down

    kr, kb = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}[picture.color.matrix]
    if picture.color.full_range:
        y, u, v = picture.y / 1.0, sample(picture.u) - 128, sample(picture.v) - 128
    else:
        y = (picture.y - 16.0) * 255 / 219
        u, v = (sample(picture.u) - 128) * 255 / 224, (sample(picture.v) - 128) * 255 / 224
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([blue, green, red], axis=-1), 0, 255)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("size", [(64, 48), (65, 49)])
def test_conversion_follows_the_standards_equations(color: Color, size: tuple[int, int]) -> None:
    picture = random_picture(*size, color)
    assert np.abs(picture.bgr() - expected_bgr(picture)).max() < 2  # fixed-point rounding


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.sampled_from([(64, 48), (65, 49), (131, 77)]))
def test_a_box_equals_that_part_of_the_whole(data: st.DataObject, size: tuple[int, int]) -> None:
    picture = random_picture(*size, Color())
    x1, y1, x2, y2 = box = data.draw(boxes(*size))
    np.testing.assert_array_equal(picture.bgr(box), picture.bgr()[y1:y2, x1:x2])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.sampled_from([(64, 48), (65, 49)]), with_alpha=st.booleans())
def test_a_patch_changes_nothing_outside_its_box(data: st.DataObject, size: tuple[int, int], with_alpha: bool) -> None:
    picture = random_picture(*size, Color())
    x1, y1, x2, y2 = box = data.draw(boxes(*size))
    patch = np.full((y2 - y1, x2 - x1, 3), (10, 200, 90), np.uint8)
    patch.setflags(write=False)
    alpha = np.full(patch.shape[:2], 0.5, np.float32) if with_alpha else None
    patched = picture.with_patch(box, patch, alpha)

    outside = np.ones(picture.y.shape, bool)
    outside[y1:y2, x1:x2] = False
    np.testing.assert_array_equal(patched.y[outside], picture.y[outside])
    touched = np.zeros(picture.u.shape, bool)
    touched[y1 // 2 : (y2 + 1) // 2, x1 // 2 : (x2 + 1) // 2] = True
    for new, old in ((patched.u, picture.u), (patched.v, picture.v)):
        np.testing.assert_array_equal(new[~touched], old[~touched])
    assert not np.shares_memory(patched.y, picture.y) and not np.shares_memory(patched.u, picture.u)


def test_a_chroma_cell_covered_in_part_keeps_the_rest_of_its_own_value() -> None:
    gray = Picture.from_bgr(np.full((64, 64, 3), 128, np.uint8))
    blue = np.zeros((31, 31, 3), np.uint8)
    blue[..., 0] = 255
    patched = gray.with_patch((1, 2, 32, 33), blue)
    whole = int(patched.u[5, 5]) - 128
    assert whole == 112  # pure blue
    assert int(patched.u[5, 0]) - 128 == pytest.approx(whole / 2, abs=1)  # half its columns
    assert int(patched.u[16, 5]) - 128 == pytest.approx(whole / 2, abs=1)  # half its rows
    assert int(patched.u[16, 0]) - 128 == pytest.approx(whole / 4, abs=1)


def test_a_cell_that_the_picture_itself_cuts_counts_as_covered() -> None:
    gray = Picture.from_bgr(np.full((65, 65, 3), 128, np.uint8))
    blue = np.zeros((65, 65, 3), np.uint8)
    blue[..., 0] = 255
    patched = gray.with_patch((0, 0, 65, 65), blue, np.ones((65, 65), np.float32))
    assert np.all(patched.u == 240)


def test_alpha_blends_from_the_old_to_the_new() -> None:
    gray = Picture.from_bgr(np.full((64, 64, 3), 100, np.uint8))
    white = np.full((16, 16, 3), 255, np.uint8)
    ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    row = gray.with_patch((8, 8, 24, 24), white, ramp).y[10, 8:24].astype(int)
    assert row[0] == gray.y[0, 0] and row[-1] == 235 and np.all(np.diff(row) > 0)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("box", [(20, 20, 100, 90), (21, 23, 98, 87)])
def test_pixels_that_go_round_stay_within_two_levels(color: Color, box: tuple[int, int, int, int]) -> None:
    picture = Picture.from_bgr(background(3, 161, 121), color)
    patched = picture.with_patch(box, picture.bgr(box))
    for new, old in ((patched.y, picture.y), (patched.u, picture.u), (patched.v, picture.v)):
        assert np.abs(new.astype(int) - old).max() <= 2


@pytest.mark.parametrize("color", COLORS)
def test_a_bgr_picture_comes_back(color: Color) -> None:
    bgr = background(0, 161, 121)
    assert np.abs(Picture.from_bgr(bgr, color).bgr().astype(int) - bgr).mean() < 2


def test_a_box_that_does_not_fit_is_refused() -> None:
    picture = random_picture(64, 48, Color())
    for box in ((-1, 0, 10, 10), (0, 0, 65, 10), (5, 5, 5, 9), (0, 0, 10, 49)):
        with pytest.raises(ValueError, match="not inside"):
            picture.bgr(box)
    with pytest.raises(ValueError, match="does not fit"):
        picture.with_patch((0, 0, 10, 10), np.zeros((9, 10, 3), np.uint8))
