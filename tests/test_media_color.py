"""Tone mapping: published points of the curves, and HDR clips that come out neither gray nor burnt."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_factory import read_number, video_bytes

from lipsync.core import Color
from lipsync.media.color import ToneMapper, hlg_to_nits, nits_to_pq, pq_to_nits, to_bgr_matrix, to_yuv_matrix
from lipsync.media.decode import FrameReader
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.options import Limits


@pytest.mark.parametrize("code, nits", [(0.0, 0.0), (0.50808, 100), (0.58069, 203), (0.75183, 1000), (1.0, 10_000)])
def test_pq_follows_st_2084(code: float, nits: float) -> None:
    assert float(pq_to_nits(np.array(code))) == pytest.approx(nits, rel=1e-3, abs=1e-9)
    assert float(nits_to_pq(np.array(float(nits)))) == pytest.approx(code, abs=1e-4)


@pytest.mark.parametrize("code, nits", [(0.0, 0.0), (0.75, 203), (1.0, 1000)])
def test_hlg_follows_bt_2100(code: float, nits: float) -> None:
    assert float(hlg_to_nits(np.array(code))) == pytest.approx(nits, rel=0.01)


@pytest.mark.parametrize("matrix", ["bt709", "bt601", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True])
def test_the_matrices_undo_each_other_and_map_white_to_white(matrix: str, full_range: bool) -> None:
    color = Color(matrix, full_range)  # type: ignore[arg-type]
    white = to_yuv_matrix(color) @ np.array([255, 255, 255, 1])
    np.testing.assert_allclose(white, [255 if full_range else 235, 128, 128], atol=1e-3)
    np.testing.assert_allclose(to_bgr_matrix(color) @ np.append(white, 1), 255, atol=1e-2)


def gray(mapper: ToneMapper, code: int) -> int:
    y, neutral = np.full((2, 2), code, np.uint16), np.full((2, 2), 512, np.uint16)
    bgr = mapper.to_bgr(y, neutral, neutral)
    assert np.ptp(bgr) <= 1  # gray stays gray
    return int(bgr[0, 0, 1])


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_brighter_stays_brighter_and_ends_at_white(transfer: str) -> None:
    mapper = ToneMapper(Color("bt2020", transfer=transfer))  # type: ignore[arg-type]
    levels = [gray(mapper, code) for code in range(64, 941, 4)]
    assert np.all(np.diff(levels) >= 0)
    assert (levels[0], levels[-1]) == (0, 255)


def test_skin_and_white_land_where_sdr_has_them() -> None:
    mapper = ToneMapper(Color("bt2020", transfer="pq"))

    def sdr(nits: float) -> int:
        return gray(mapper, round(64 + 876 * float(nits_to_pq(np.array(nits)))))

    assert 100 <= sdr(26) <= 125  # 18 % gray
    assert 220 <= sdr(203) <= 240  # diffuse white, with room above for highlights
    assert sdr(1000) == 255


def test_a_color_outside_bt709_is_clipped_not_wrapped() -> None:
    mapper = ToneMapper(Color("bt2020", transfer="pq"))
    red_2020 = np.array([[0.0, 0.0, 0.55]])  # B G R, PQ codes of BT.2020's pure red
    yuv = to_yuv_matrix(Color("bt2020")) @ np.append(red_2020 * 255, 1)
    planes = [np.full((2, 2), round(float(4 * value)), np.uint16) for value in yuv]
    blue, green, red = (int(value) for value in mapper.to_bgr(*planes)[0, 0])
    assert red > 200 and blue < 40 and green < 40


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("size", [(160, 120), (162, 122)])
def test_an_hdr_clip_comes_out_as_sdr_bt709(transfer: int, size: tuple[int, int]) -> None:
    def dim(number: int, width: int, height: int) -> np.ndarray:
        from media_factory import numbered

        return (numbered(number, width, height) * 0.6).astype(np.uint8)  # white at about 250 nits in PQ

    data = video_bytes(
        frames=3, size=size, codec="libx265", pix_fmt="yuv420p10le", matrix="bt2020", transfer=transfer, draw=dim
    )
    blob = Blob.of(data, limit_bytes=10**9)
    info = probe_face(blob, Limits())
    with FrameReader(blob, info, build_index(blob, info, Limits()), limits=Limits()) as reader:
        picture = next(reader.read([2]))
        small = next(reader.read_small(2, 3, max_side=80))
    assert picture.color == Color("bt709", False, "sdr")
    assert (picture.width, picture.height) == size
    levels = picture.bgr()
    assert levels.max() > 150 and levels.min() < 40  # not washed out
    shrunk = cv2.resize(levels, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(small, shrunk)
    if transfer == 18:
        assert read_number(cv2.convertScaleAbs(levels, alpha=255 / levels.max())) == 2
