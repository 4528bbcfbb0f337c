"""Stills: whatever a picture file holds becomes upright, opaque, 8-bit BGR of the size that was probed."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from media_factory import background, image_bytes, numbered, read_number
from PIL import Image

from lipsync.core import U8
from lipsync.errors import LimitExceeded, TruncatedMedia, UnreadableMedia
from lipsync.media.decode import FrameReader
from lipsync.media.index import build_index
from lipsync.media.picture import Picture
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.media.still import decode_still
from lipsync.options import Limits

LIMITS = Limits()


def shown(data: bytes, limits: Limits = LIMITS) -> U8:
    blob = Blob.of(data, limit_bytes=10**9)
    info = probe_face(blob, limits)
    assert info.kind == "image" and info.video is not None
    bgr = decode_still(blob, info.container, limits)
    assert bgr.shape == (info.video.height, info.video.width, 3)
    with FrameReader(blob, info, build_index(blob, info, limits), limits=limits) as reader:
        picture = next(reader.read([0]))
        assert (picture.width, picture.height) == (info.video.width, info.video.height)
        np.testing.assert_array_equal(picture.y, Picture.from_bgr(bgr).y)
    return bgr


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "avif", "heic", "gif"])
def test_every_format_shows_the_picture(format: str) -> None:
    bgr = shown(image_bytes(format=format, size=(161, 121)))
    assert read_number(bgr) == 0
    assert np.abs(bgr.astype(int) - numbered(0, 161, 121)).mean() < 12


@pytest.mark.parametrize("mode", ["RGB", "P", "1"])
def test_palettes_become_colors(mode: str) -> None:
    assert read_number(shown(image_bytes(mode=mode))) == 0


def test_alpha_lies_on_white() -> None:
    for mode in ("RGBA", "LA"):
        bgr = shown(image_bytes(mode=mode, number=None))
        assert np.all(bgr[60:, 80:] == 255)  # the transparent quarter
        if mode == "RGBA":
            np.testing.assert_array_equal(bgr[:60], background(0, 160, 120)[:60])


def test_a_transparent_palette_entry_lies_on_white() -> None:
    image = Image.fromarray(np.full((80, 80), 3, np.uint8), mode="P")
    image.putpalette([0] * 768)
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=3)
    assert np.all(shown(buffer.getvalue()) == 255)


def test_sixteen_bits_are_scaled_not_cut() -> None:
    bgr = shown(image_bytes(mode="I;16", number=None))
    gray = np.asarray(Image.fromarray(np.ascontiguousarray(background(0, 160, 120)[..., ::-1])).convert("L"))
    for channel in range(3):
        np.testing.assert_array_equal(bgr[..., channel], gray)


def test_gray_and_cmyk_keep_their_colors() -> None:
    assert read_number(shown(image_bytes(mode="L"))) == 0
    cmyk = shown(image_bytes(format="jpeg", mode="CMYK", number=None))
    assert np.abs(cmyk.astype(int) - background(0, 160, 120)).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = Image.fromarray(np.ascontiguousarray(numbered(5, 160, 120)[..., ::-1]))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, format, exif=exif, **({} if format != "webp" else {"lossless": True}))
    bgr = shown(buffer.getvalue())
    assert bgr.shape == (120, 160, 3) and read_number(bgr) == 5


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_is_none(value: int) -> None:
    assert shown(image_bytes(format="jpeg", orientation=value)).shape == (120, 160, 3)


def test_broken_exif_does_not_spoil_the_photo() -> None:
    data = image_bytes(format="png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_number(shown(data)) == 0


@pytest.mark.parametrize("made", [{"format": "jpeg"}, {"format": "png"}, {"format": "jpeg", "orientation": 6}])
def test_a_large_image_is_scaled_down_to_exactly_the_probed_size(made: dict[str, Any]) -> None:
    bgr = shown(image_bytes(size=(1001, 301), **made), Limits(max_side=400))
    assert sorted(bgr.shape) == [3, 120, 400]
    if "orientation" not in made:
        assert read_number(bgr) == 0


def test_the_pixel_limit_holds_before_decoding_and_without_a_warning() -> None:
    header = bytearray(image_bytes(format="gif", mode="P"))
    header[6:10] = struct.pack("<HH", 15_000, 15_000)
    blob = Blob.of(bytes(header), limit_bytes=10**9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LimitExceeded, match="15000×15000"):
            decode_still(blob, "GIF", LIMITS)


@pytest.mark.parametrize("format, keep", [("jpeg", 0.6), ("jpeg", 0.97), ("png", 0.6), ("webp", 0.6), ("avif", 0.6)])
def test_a_cut_off_image_is_reported(format: str, keep: float) -> None:
    data = image_bytes(format=format, size=(320, 240))
    with pytest.raises(TruncatedMedia, match="cut off"):
        shown(data[: int(len(data) * keep)])


def test_an_image_under_another_type_s_name_is_refused() -> None:
    with pytest.raises(UnreadableMedia):
        decode_still(Blob.of(image_bytes(format="png"), limit_bytes=10**9), "JPEG", LIMITS)
