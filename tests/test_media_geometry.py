"""Turning and cutting planes: chroma stays with its luma, also at odd sizes and corners."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_factory import background

from lipsync.core import VideoInfo
from lipsync.errors import InvalidOption
from lipsync.media.decode import Geometry
from lipsync.media.geometry import cut, mirror, turn
from lipsync.media.picture import Picture


def video(width: int, height: int) -> VideoInfo:
    return VideoInfo("h264", width, height, Fraction(25), 1.0, 25)


@pytest.mark.parametrize("size", [(64, 48), (65, 48), (64, 49), (65, 49)])
@pytest.mark.parametrize("degrees, k", [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_a_turned_picture_equals_the_picture_of_the_turned_pixels(size: tuple[int, int], degrees: int, k: int) -> None:
    bgr = background(0, *size)
    turned = turn(Picture.from_bgr(bgr), degrees)
    expected = Picture.from_bgr(np.ascontiguousarray(np.rot90(bgr, k)))
    np.testing.assert_array_equal(turned.y, expected.y)
    for ours, theirs in ((turned.u, expected.u), (turned.v, expected.v)):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 4


@pytest.mark.parametrize("size", [(64, 48), (65, 48), (64, 49), (65, 49)])
def test_a_mirrored_picture_equals_the_picture_of_the_mirrored_pixels(size: tuple[int, int]) -> None:
    bgr = background(0, *size)
    mirrored, expected = mirror(Picture.from_bgr(bgr)), Picture.from_bgr(np.ascontiguousarray(bgr[:, ::-1]))
    np.testing.assert_array_equal(mirrored.y, expected.y)
    for ours, theirs in ((mirrored.u, expected.u), (mirrored.v, expected.v)):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 4


@given(data=st.data(), size=st.sampled_from([(64, 48), (65, 49)]))
def test_a_cut_picture_equals_the_picture_of_the_cut_pixels(data: st.DataObject, size: tuple[int, int]) -> None:
    bgr = background(0, *size)
    x1, y1 = data.draw(st.integers(0, size[0] - 8)), data.draw(st.integers(0, size[1] - 8))
    x2, y2 = data.draw(st.integers(x1 + 2, size[0])), data.draw(st.integers(y1 + 2, size[1]))
    part = cut(Picture.from_bgr(bgr), (x1, y1, x2, y2))
    expected = Picture.from_bgr(bgr[y1:y2, x1:x2])
    np.testing.assert_array_equal(part.y, expected.y)
    for ours, theirs in ((part.u, expected.u), (part.v, expected.v)):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 8  # half a cell at the far edge


@pytest.mark.parametrize(
    "geometry, size",
    [
        (Geometry(), (161, 121)),
        (Geometry(resize_factor=3), (53, 40)),
        (Geometry(rotate=True), (121, 161)),
        (Geometry(resize_factor=2, rotate=True), (60, 80)),
        (Geometry(crop=(0, -1, 0, -1)), (161, 121)),
        (Geometry(crop=(20, 100, 30, 500)), (131, 80)),
        (Geometry(rotate=True, crop=(0, 50, 0, -1)), (121, 50)),
    ],
)
def test_the_size_is_that_of_the_reference_s_arithmetic(geometry: Geometry, size: tuple[int, int]) -> None:
    pixels = np.zeros((121, 161, 3), np.uint8)
    if geometry.resize_factor > 1:
        pixels = cv2.resize(pixels, (161 // geometry.resize_factor, 121 // geometry.resize_factor))
    pixels = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE) if geometry.rotate else pixels
    if geometry.crop:
        y1, y2, x1, x2 = geometry.crop
        pixels = pixels[y1 : pixels.shape[0] if y2 == -1 else y2, x1 : pixels.shape[1] if x2 == -1 else x2]
    assert geometry.size(video(161, 121)) == size == (pixels.shape[1], pixels.shape[0])
    picture = geometry.apply(Picture.from_bgr(background(0, 161, 121)), video(161, 121))
    assert (picture.width, picture.height) == size


@pytest.mark.parametrize(
    "geometry", [Geometry(crop=(50, 50, 0, -1)), Geometry(crop=(0, -1, 200, -1)), Geometry(resize_factor=100)]
)
def test_a_geometry_that_leaves_nothing_is_refused(geometry: Geometry) -> None:
    with pytest.raises(InvalidOption, match="leaves"):
        geometry.size(video(161, 121))
