"""Still images and animations through Pillow: sizes from headers, then upright opaque BGR pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import cv2
import numpy as np
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from lipsync.core import U8, Color, Transfer
from lipsync.errors import LimitExceeded, UnsupportedMedia
from lipsync.media.color import ToneMapper
from lipsync.media.container import WorkClock, media_errors
from lipsync.media.item_color import transfer_of
from lipsync.media.source import Blob
from lipsync.options import Limits

_ORIENTATION = 0x0112
_ROWS_AT_ONCE = 128
"""Tone mapping holds seven times as many bytes as it is given."""
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


@contextmanager
def open_image(blob: Blob, format: str, limits: Limits) -> Iterator[Image.Image]:
    """The image with its headers read and its size within the limits; pixels are decoded when they are asked for.

    The one format is named, so that Pillow guesses nothing. Raises UnreadableMedia, LimitExceeded.
    """
    reader = blob.open()
    try:
        with media_errors(f"read the {format} image"):
            image = _reader_of(format)(reader)
        with image:
            _check_size(*image.size, limits)
            yield image
    finally:
        reader.close()


def _reader_of(format: str) -> type[ImageFile.ImageFile]:
    # NOTE: not Image.open, whose own bomb check warns through the process-wide warnings before ours can refuse
    if format == "HEIF":
        import pillow_heif

        heif: type[ImageFile.ImageFile] = pillow_heif.HeifImageFile
        return heif
    if format not in _READERS:
        raise UnsupportedMedia(f"{format} images are not accepted. Send jpg, png, webp, avif, heic or gif.")
    return _READERS[format]


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.image_pixels:
        raise LimitExceeded(
            f"The image is {width}×{height}; at most {limits.image_pixels:,} pixels are allowed. Scale it down."
        )
    if min(width, height) < limits.min_side:
        raise LimitExceeded(f"The image is {width}×{height}; each side must have at least {limits.min_side} pixels.")


def still_size(blob: Blob, format: str, limits: Limits, *, pixels: int | None = None) -> tuple[int, int]:
    """Width and height as shown: upright, and scaled down to ``limits.max_side``; from the headers alone.

    ``pixels`` is the most that the shown picture may have. Raises UnreadableMedia, LimitExceeded.
    """
    with open_image(blob, format, limits) as image:
        width, height = image.size[::-1] if _orientation(image) >= 5 else image.size
    width, height = fit(width, height, limits.max_side)
    if min(width, height) < limits.min_side:
        raise LimitExceeded(
            f"The image is too narrow: {width}×{height} where it is scaled to {limits.max_side} pixels."
        )
    if pixels is not None and width * height > pixels:
        raise LimitExceeded(f"The animation is {width}×{height}; at most {pixels:,} pixels are allowed. Scale it down.")
    return width, height


def fit(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size scaled down, where needed, so that the longer side is ``max_side``."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1…8, 1 where there is none."""
    try:
        # NOTE: the base class's, since PNG's own decodes the whole image to look behind it
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # a photo with broken EXIF is still a photo; Pillow raises six different classes on it
        return 1
    return value if value in range(1, 9) else 1


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_still(blob: Blob, format: str, limits: Limits) -> U8:
    """(H, W, 3) uint8 BGR, upright, opaque on white, at most max_side. Raises UnreadableMedia, LimitExceeded."""
    transfer = transfer_of(blob, format)
    with open_image(blob, format, limits) as image, media_errors(f"decode the {format} image"):
        size = fit(*image.size, limits.max_side)
        orientation = _orientation(image)
        if format == "JPEG" and size != image.size:
            image.draft(None, size)  # decodes at 1/2, 1/4 or 1/8 where that is enough
        return _upright(to_bgr(image, size, transfer), orientation)


def _upright(bgr: U8, orientation: int) -> U8:
    if orientation not in _TRANSPOSE:
        return bgr
    return np.ascontiguousarray(np.asarray(Image.fromarray(bgr).transpose(_TRANSPOSE[orientation])))


def to_bgr(image: Image.Image, size: tuple[int, int], transfer: Transfer = "sdr") -> U8:
    """The pixels of any Pillow mode as (H, W, 3) uint8 BGR of ``size``; alpha lies on white, 16 bits become 8.

    PQ and HLG are tone-mapped as in videos; other colours are taken from the image's own profile to sRGB.
    """
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if rgb.shape[:2] != size[::-1]:
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    if transfer == "sdr" and profile:
        rgb = _in_srgb(rgb, profile)
    bgr = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), dtype=np.uint8)
    return bgr if transfer == "sdr" else _tone_mapped(bgr, transfer)


def _in_srgb(rgb: U8, profile: bytes) -> U8:
    """The pixels as they are where the profile is sRGB, is none for RGB, or is broken."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if own.profile.xcolor_space.strip() != "RGB" or "sRGB" in (own.profile.profile_description or ""):
            return rgb
        shown = ImageCms.profileToProfile(Image.fromarray(rgb), own, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):
        return rgb
    return rgb if shown is None else np.asarray(shown)


def _tone_mapped(bgr: U8, transfer: Transfer) -> U8:
    mapper = ToneMapper(Color("bt2020", transfer=transfer))
    shown = np.empty_like(bgr)
    for top in range(0, len(bgr), _ROWS_AT_ONCE):
        shown[top : top + _ROWS_AT_ONCE] = mapper.from_bgr(bgr[top : top + _ROWS_AT_ONCE])
    return shown


def _eight_bits(samples: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> U8:
    """Gray of 16 bits (or 32 holding 16) to 8, white staying white."""
    return np.round(np.clip(samples.astype(np.float32), 0, 65535) / 257).astype(np.uint8)


class AnimationReader:
    """The frames of a gif, webp, png or avif, one after the other; going back decodes from the start again."""

    def __init__(self, blob: Blob, format: str, limits: Limits, *, clock: WorkClock) -> None:
        self._clock = clock
        self._blob = blob
        self._format = format
        self._limits = limits
        self._file: BinaryIO | None = None
        self._image: ImageFile.ImageFile | None = None
        self._transfer: Transfer = "sdr"
        self.position = -1
        self.decoded_count = 0

    def read(self, frame: int) -> U8:
        """(H, W, 3) uint8 BGR of frame ``frame``. Raises UnreadableMedia, TruncatedMedia."""
        if self._image is None or frame < self.position:
            self._restart()
        assert self._image is not None
        with self._clock, media_errors(f"decode frame {frame} of the {self._format} animation"):
            while self.position < frame:
                self._clock.check()
                self.position += 1
                self._image.seek(self.position)
                self._image.load()
                self.decoded_count += 1
            size = fit(*self._image.size, self._limits.max_side)
            return _upright(to_bgr(self._image.copy(), size, self._transfer), _orientation(self._image))

    def _restart(self) -> None:
        self.close()
        self._file = self._blob.open()
        with media_errors(f"read the {self._format} animation"):
            self._image = _reader_of(self._format)(self._file)
        _check_size(*self._image.size, self._limits)
        self._transfer = transfer_of(self._blob, self._format)
        self.position = -1

    def close(self) -> None:
        if self._image is not None:
            self._image.close()
        if self._file is not None:
            self._file.close()
        self._image = self._file = None
