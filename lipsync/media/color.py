"""The arithmetic of colour: YUV to BGR and back by explicit matrices, and high dynamic range to standard."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt

from lipsync.core import F32, F64, U8, Color

U16: TypeAlias = npt.NDArray[np.uint16]

_LUMA_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
"""Kr and Kb of ITU-R BT.709, BT.601 and BT.2020."""


@lru_cache
def to_bgr_matrix(color: Color) -> F32:
    """(3, 4): from (Y, U, V, 1), 8-bit codes, to (B, G, R) in 0…255."""
    inverse = np.linalg.inv(_to_yuv(color)[:, :3])
    return np.hstack([inverse, -inverse @ _to_yuv(color)[:, 3:]]).astype(np.float32)


@lru_cache
def to_yuv_matrix(color: Color) -> F32:
    """(3, 4): from (B, G, R, 1) in 0…255 to (Y, U, V) 8-bit codes."""
    return _to_yuv(color).astype(np.float32)


def _to_yuv(color: Color) -> F64:
    kr, kb = _LUMA_WEIGHTS[color.matrix]
    luma = np.array([kb, 1 - kr - kb, kr])
    blue, red = (np.eye(3)[0] - luma) / (2 - 2 * kb), (np.eye(3)[2] - luma) / (2 - 2 * kr)
    luma_scale, chroma_scale, black = (1.0, 1.0, 0.0) if color.full_range else (219 / 255, 224 / 255, 16.0)
    rows = np.array([luma * luma_scale, blue * chroma_scale, red * chroma_scale])
    return np.hstack([rows, [[black], [128.0], [128.0]]])


def yuv_to_bgr(y: U8, u: U8, v: U8, color: Color) -> U8:
    """(h, w) planes of one size to (h, w, 3) BGR."""
    return np.asarray(cv2.transform(cv2.merge([y, u, v]), to_bgr_matrix(color)), dtype=np.uint8)


def bgr_to_yuv(bgr: U8, color: Color) -> U8:
    """(h, w, 3) BGR to (h, w, 3) YUV."""
    return np.asarray(cv2.transform(bgr, to_yuv_matrix(color)), dtype=np.uint8)


# ---------------------------------------------------------------- tone mapping

SOURCE_PEAK_NITS = 1000.0
"""Where highlights clip; few displays that such clips are graded on go beyond."""
WHITE_NITS = 203.0
"""Diffuse white of HDR (ITU-R BT.2408), which becomes the white of SDR."""
_STEPS = 65536
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)  # RGB, linear light, ITU-R BT.2087


class ToneMapper:
    """HDR pictures (PQ or HLG, BT.2020) to SDR BT.709.

    Each of R'G'B' becomes light (SMPTE ST 2084, or ITU-R BT.2100's HLG with its 1.2 system gamma taken per channel),
    is compressed from 1000 to 203 nits by the EETF of ITU-R BT.2390 section 5.4.1 in its R'G'B' form, taken to
    BT.709's primaries by a matrix, and encoded with the inverse of BT.1886. Two tables do all but the matrices.
    """

    def __init__(self, color: Color) -> None:
        codes = np.linspace(0.0, 1.0, _STEPS)
        nits = pq_to_nits(codes) if color.transfer == "pq" else hlg_to_nits(codes)
        self._light = (_compress(nits) / WHITE_NITS).astype(np.float32)
        self._code = np.round(255 * codes ** (1 / 2.4)).astype(np.uint8)
        self._to_rgb = _ten_bits_to_bgr(color)
        self._gamut = ((_STEPS - 1) * _BT2020_TO_BT709[::-1, ::-1]).astype(np.float32)  # BGR order

    def to_bgr(self, y: U16, u: U16, v: U16) -> U8:
        """10-bit planes of one size, (h, w) each, to SDR BGR (h, w, 3)."""
        codes = cast(U16, cv2.transform(cv2.merge([y, u, v]), self._to_rgb))
        return self._shown(codes)

    def from_bgr(self, bgr: U8) -> U8:
        """(h, w, 3) HDR B'G'R' of 8 bits to SDR BGR."""
        return self._shown(bgr.astype(np.uint16) * (_STEPS // 255))

    def _shown(self, codes: U16) -> U8:
        linear = cv2.transform(np.take(self._light, codes), self._gamut)
        return np.take(self._code, np.clip(linear, 0, _STEPS - 1, out=linear).astype(np.uint16))


def _ten_bits_to_bgr(color: Color) -> F32:
    """Like ``to_bgr_matrix`` from 10-bit codes to 0…65535."""
    matrix = to_bgr_matrix(Color(color.matrix, color.full_range)).astype(np.float64)
    matrix[:, :3] *= 255 / 1023 if color.full_range else 1 / 4
    return (matrix * ((_STEPS - 1) / 255)).astype(np.float32)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def pq_to_nits(code: F64) -> F64:
    """SMPTE ST 2084: code in 0…1 to cd/m²."""
    power = code ** (1 / _M2)
    return 10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def nits_to_pq(nits: F64) -> F64:
    power = (nits / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def hlg_to_nits(code: F64) -> F64:
    """ITU-R BT.2100 HLG on a 1000 cd/m² display."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return 1000 * scene**1.2


def _compress(nits: F64) -> F64:
    """BT.2390's EETF: the identity up to a knee, then a Hermite spline that ends at the target's peak."""
    peak, target = nits_to_pq(np.array([SOURCE_PEAK_NITS, WHITE_NITS]))
    level = np.minimum(nits_to_pq(nits) / peak, 1.0)
    most = target / peak
    knee = 1.5 * most - 0.5
    t = np.maximum(level - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_to_nits(np.where(level < knee, level, spline) * peak)
