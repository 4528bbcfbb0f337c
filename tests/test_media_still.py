"""Stills: whatever a picture file holds becomes upright, opaque, 8-bit BGR of the size that was probed."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from media_factory import background, image_bytes, numbered, read_number
from PIL import Image, ImageCms

from lipsync.core import U8
from lipsync.errors import LimitExceeded, TruncatedMedia, UnreadableMedia
from lipsync.media.color import hlg_to_nits, pq_to_nits
from lipsync.media.decode import FrameReader
from lipsync.media.index import build_index
from lipsync.media.item_color import transfer_of
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


# ---------------------------------------------------------------- colours beyond sRGB

NITS = (26.0, 203.0, 1000.0)  # 18 % gray, diffuse white, a highlight
HDR_TAGS = {"pq": 16, "hlg": 18}


def gray_bars(transfer: str) -> Image.Image:
    """Three bars whose codes mean ``NITS``."""
    codes = np.linspace(0, 1, 1 << 16)
    nits = pq_to_nits(codes) if transfer == "pq" else hlg_to_nits(codes)
    levels = [round(255 * codes[np.abs(nits - wanted).argmin()]) for wanted in NITS]
    return Image.fromarray(np.repeat(np.repeat([levels], 64, axis=1), 120, axis=0).astype(np.uint8)).convert("RGB")


def tagged(data: bytes, transfer: str) -> bytes:
    """The AVIF with its colour boxes saying BT.2020 and the transfer, as an encoder of HDR writes them."""
    marked = bytearray(data)
    at = -1
    while (at := marked.find(b"nclx", at + 1)) >= 0:
        struct.pack_into(">HH", marked, at + 4, 9, HDR_TAGS[transfer])
    return bytes(marked)


def heic_of(image: Image.Image, transfer: str) -> bytes:
    import pillow_heif

    samples = (np.asarray(image).astype(np.uint16) * 257).tobytes()
    buffer = io.BytesIO()
    tags = {"color_primaries": 9, "transfer_characteristics": HDR_TAGS[transfer], "matrix_coefficients": 9}
    pillow_heif.from_bytes("RGB;16", image.size, samples).save(buffer, quality=95, full_range_flag=1, **tags)
    return buffer.getvalue()


def avif_of(*images: Image.Image, transfer: str) -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, "AVIF", quality=95, save_all=len(images) > 1, append_images=images[1:], duration=40)
    return tagged(buffer.getvalue(), transfer)


def assert_lies_in_sdr(bgr: U8) -> None:
    gray, white, highlight = (int(bgr[60, at, 1]) for at in (32, 96, 160))
    assert 95 <= gray <= 130 and 215 <= white <= 245 and highlight >= 250
    assert np.ptp(bgr[60, 32].astype(int)) <= 4, "gray stays gray"


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
@pytest.mark.parametrize("format", ["avif", "heic"])
def test_an_hdr_still_is_tone_mapped_as_a_video_is(format: str, transfer: str) -> None:
    image = gray_bars(transfer)
    data = avif_of(image, transfer=transfer) if format == "avif" else heic_of(image, transfer)
    assert_lies_in_sdr(shown(data))


def test_an_hdr_animation_is_tone_mapped() -> None:
    data = avif_of(*[gray_bars("pq")] * 3, transfer="pq")
    blob = Blob.of(data, limit_bytes=10**9)
    info = probe_face(blob, LIMITS)
    assert info.kind == "animation"
    with FrameReader(blob, info, build_index(blob, info, LIMITS), limits=LIMITS) as reader:
        assert_lies_in_sdr(list(reader.read(range(3)))[2].bgr())


def test_the_colour_of_another_item_does_not_count() -> None:
    image = Image.fromarray(numbered(0, 160, 120))
    data = bytearray(avif_of(image, transfer="pq"))
    item = data.index(b"pitm") + 8
    table = data.index(b"ipma") + 12
    assert data[item : item + 2] == data[table : table + 2]
    data[table : table + 2] = b"\x00\x63"  # what the table lists is another item's now
    assert transfer_of(Blob.of(bytes(data), limit_bytes=10**9), "AVIF") == "sdr"
    assert transfer_of(Blob.of(avif_of(image, transfer="pq"), limit_bytes=10**9), "AVIF") == "pq"


def display_p3() -> bytes:
    """A profile like the one of phones' photos: sRGB's with wider primaries (D50, 16.16)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = bytearray(bytes(profile).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be")))
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for tag in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * tag)
        if name in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(65536 * value) for value in primaries[name]))
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("format", ["png", "avif", "webp"])
def test_a_photo_of_wide_gamut_comes_out_in_srgb(format: str, mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.new(mode, (96, 96), (234, 51, 35))  # sRGB's pure red, as Display P3 says it
    image.save(buffer, format, icc_profile=display_p3(), quality=100)
    blue, green, red = (int(value) for value in shown(buffer.getvalue())[48, 48])
    assert red >= 252 and green <= 10 and blue <= 10


@pytest.mark.parametrize("profile", [b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_a_broken_profile_and_srgb_itself_change_nothing(profile: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(numbered(0, 160, 120)[..., ::-1]).save(buffer, "PNG", icc_profile=profile)
    np.testing.assert_array_equal(shown(buffer.getvalue()), numbered(0, 160, 120))
